"""vLLM as the other side, in its own environment: one JSON object a line asks, one answers. Imports nothing of ours.

PYTHON vllm_worker.py MODEL ADAPTERS(json: name -> folder, or {}) MAX_REQUESTS
"""

import json
import os
import sys
import time


def main(folder: str, adapters: str, most: str) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # its own words go elsewhere
    sys.path.pop(0)  # this folder, where a file has the name of what is imported
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

    folders = json.loads(adapters)
    lora = {"enable_lora": True, "max_loras": len(folders), "max_lora_rank": 8} if folders else {}
    llm = LLM(
        folder, dtype="float32", max_model_len=512, max_num_seqs=int(most), skip_tokenizer_init=True,
        enable_prefix_caching=False, **lora,
    )  # fmt: skip
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        how = SamplingParams(temperature=0, max_tokens=ask["new"], ignore_eos=True, detokenize=False)
        who = [t and LoRARequest(t, 1 + list(folders).index(t), folders[t]) for t in ask["tenants"]]
        asked = [{"prompt_token_ids": p} for p in ask["prompts"]]
        start = time.perf_counter()
        got = llm.generate(asked, how, lora_request=who if any(who) else None, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = [list(g.outputs[0].token_ids) for g in got]
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
