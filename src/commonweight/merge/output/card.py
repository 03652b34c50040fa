"""What lies beside the weights: the lead's config and tokenizer, and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ...core import library
from ...formats import atomic
from .. import registry
from ..plan.built import Built
from ..vocabulary.reading import holds_tokens, of_tokenizer

_COPIED = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"}
_MOST = 1 << 28  # bytes; larger files are no tokenizer's
_OURS = ("config.json", "merge.json", "quantize_config.json")  # written anew, or not true of the result


def beside(built: Built, folder: Path) -> None:
    """Copies what is small and no weight from the lead's folder, the tokenizer's files from where it is taken; writes
    config.json and README.md. Files of the vocabulary that the result does not have are left out."""
    words = built.words or built.lead
    for home in dict.fromkeys((built.lead, words)):
        for file in sorted(home.rglob("*")) if home.is_dir() else ():
            at = file.relative_to(home)
            hidden = any(p.startswith(".") for p in at.parts)
            if file.suffix not in _COPIED or hidden or not file.is_file() or file.stat().st_size > _MOST:
                continue
            if (at.name in _OURS and len(at.parts) == 1) or at.name.endswith(".index.json"):
                continue
            mine = (not of_tokenizer(at) or home == words) if home == built.lead else of_tokenizer(at)
            if not mine or (built.tokenizer is not None and holds_tokens(at.name) and len(at.parts) == 1):
                continue
            (folder / at).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / at)
    if built.tokenizer is not None:
        atomic.write(folder / "tokenizer.json", built.tokenizer.encode())
    if built.generation is not None:
        text = json.dumps(built.generation, indent=2, ensure_ascii=False) + "\n"
        atomic.write(folder / "generation_config.json", text.encode())
    if built.config is not None:
        text = json.dumps(built.config, indent=2, ensure_ascii=False) + "\n"
        atomic.write(folder / "config.json", text.encode())
    atomic.write(folder / "README.md", _readme(built).encode())


def _readme(built: Built) -> str:
    recipe = built.recipe
    models = list(dict.fromkeys(i.model for part in recipe.slices for i in part.inputs))
    used = sorted({t.job.method.name for t in built.tasks if t.job is not None})
    head = ["---", "library_name: transformers", "tags:", "- merge", "- commonweight"]
    head += ["base_model:", *(f"- {json.dumps(b)}" for b in built.hub)] if built.hub else []
    papers = [f"- `{m}`: {registry.get(m).paper}" for m in used]
    named = [f"- `{recipe.base}` (base)"] if recipe.base else []
    named += [f"- `{m}`" for m in models if m != recipe.base]
    lines = [
        *head, "---", "", f"# {recipe.method}: {' + '.join(Path(m).name for m in models)}", "",
        f"Merged with commonweight {library()}. `merge.json` has the recipe and the digests of what was read.", "",
        "Methods:", "", *papers, "",
        "Models:", "", *named,
        "", "Recipe:", "", "```yaml", recipe.text.rstrip(), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
