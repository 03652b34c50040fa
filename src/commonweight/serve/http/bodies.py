"""The bodies of requests, field by field, as OpenAI's interface and vLLM's have them.

A field that would change the answer and that is not served is refused unless it says what happens anyway (`neutral`);
one that changes nothing here is taken and not looked at. A field that is not known is refused: it may be misspelt.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Mass = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Token = Annotated[int, Field(ge=0)]
Salt = Annotated[str, Field(min_length=1)] | None


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(Body):
    """What completions and chats have in common."""

    model: str | None = Field(None, description="A tenant's name; `base` or the model's own name: the plain model.")
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: Mass | None = None
    n: int | None = Field(None, ge=1, le=64)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=1)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    top_k: int | None = Field(None, ge=-1, description="vLLM's; 0 and -1: all.")
    min_p: Share | None = Field(None, description="vLLM's.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="vLLM's.")
    ignore_eos: bool | None = Field(None, description="vLLM's.")
    min_tokens: int | None = Field(None, ge=0, description="vLLM's: no end and no stop before so many.")
    stop_token_ids: list[Token] | None = Field(None, description="vLLM's.")
    response_format: dict[str, Any] | None = Field(None, description="text, json_object or json_schema.")
    structured_outputs: dict[str, Any] | None = Field(
        None, description="vLLM's: one of json, json_object, regex, choice, grammar (Lark)."
    )
    guided_json: dict[str, Any] | str | None = Field(None, description="vLLM's, like the next four.")
    guided_json_object: bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    task: str | None = Field(None, description="Of a tenant that goes by tasks, which.")
    cache_salt: Salt = Field(None, description="vLLM's: prefixes are found among requests of the same salt alone.")

    # taken, and nothing here depends on them
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    request_id: Any = None
    priority: Any = None
    # taken where they say what happens anyway
    best_of: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    skip_special_tokens: Any = None
    spaces_between_special_tokens: Any = None
    include_stop_str_in_output: Any = None
    prompt_logprobs: Any = None
    truncate_prompt_tokens: Any = None
    add_special_tokens: Any = None
    guided_decoding_backend: Any = None
    guided_whitespace_pattern: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    logits_processors: Any = None
    return_token_ids: Any = None
    return_tokens_as_token_ids: Any = None
    kv_transfer_params: Any = None
    vllm_xargs: Any = None


class CompletionBody(Sampled):
    prompt: str | list[str] | list[Token] | list[list[Token]]
    max_tokens: int | None = Field(None, ge=0, description="0, with echo: the prompt alone.")
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = Field(None, description="The prompt stands before the answer, with its log probabilities.")
    suffix: Any = None
    prompt_embeds: Any = None


class ChatBody(Sampled):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="none, auto, required, a function, or allowed_tools."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most.")
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    echo: Any = None
    add_generation_prompt: Any = None
    continue_final_message: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    documents: Any = None
    mm_processor_kwargs: Any = None
    include_reasoning: Any = None


class ResponseBody(Body):
    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    task: str | None = Field(None, description="Of a tenant that goes by tasks, which.")
    cache_salt: Salt = Field(None, description="vLLM's: prefixes are found among requests of the same salt alone.")
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: Mass | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, Any] | None = None
    user: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    truncation: Any = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = Field(None, description="Of type function alone.")
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="none, auto, required, a function, or allowed_tools."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most.")
    max_tool_calls: Any = None
    include: Any = None
    background: Any = None
    conversation: Any = None
    previous_response_id: Any = None
    prompt: Any = None
    reasoning: Any = None
    top_logprobs: Any = None


class TokenizeBody(Body):
    """vLLM's: either a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    tools: list[dict[str, Any]] | None = Field(None, description="Beside messages, as a chat with them has it.")
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: list[Token]


class LoadBody(Body):
    """vLLM's."""

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False
    is_3d_lora_weight: Literal[False] = False


class UnloadBody(Body):
    """vLLM's."""

    lora_name: str = ""
    lora_int_id: int | None = None


# field -> the values of it that are what happens anyway
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "add_special_tokens": (),  # by the kind of body
    "guided_decoding_backend": ("auto", "guidance"),
    "guided_whitespace_pattern": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "kv_transfer_params": ({},),
    "vllm_xargs": ({},),
    "prompt_embeds": (),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "include_reasoning": (True, False),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    # of /v1/responses
    "truncation": ("disabled",),
    "include": ([],),
    "background": (False,),
    "conversation": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({},),
    "top_logprobs": (0,),
    "max_tool_calls": (),
}
WHY = {
    "echo": "a conversation is not given back; ask for the answer alone",
    "best_of": "an answer is drawn once; ask for n and choose",
    "previous_response_id": "no answers are kept here; send the whole conversation as input",
    "conversation": "no answers are kept here; send the whole conversation as input",
    "store": "no answers are kept here",
}


_MEANT: dict[type, set[str]] = {
    CompletionBody: {"prompt", "echo"},
    ChatBody: {"top_logprobs", "tools", "tool_choice"},
    ResponseBody: {"tools", "tool_choice"},
}  # fields that are served in these
_SPECIAL: dict[type, bool] = {CompletionBody: True, ChatBody: False}  # whether special tokens are added to the text


def _said(value: Any) -> Any:
    """An object of which all values are null says nothing."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def neutral(body: BaseModel) -> tuple[str, str] | None:
    """(field, why it is refused) of the first one that asks for what is not served."""
    for name, allowed in NEUTRAL.items():
        value = None if name in _MEANT.get(type(body), ()) else _said(getattr(body, name, None))
        if name == "add_special_tokens":
            allowed = (_SPECIAL.get(type(body)),)
        if value is None or any(type(value) is type(a) and value == a for a in allowed):
            continue
        wanted = f"; only {' or '.join(map(repr, allowed))} is" if allowed else ""
        return name, WHY.get(name, f"not served here{wanted}")
    return None
