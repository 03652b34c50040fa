"""Methods that have no site in the encoder of `benchmarks.compare`, on models that have them: docs/results/compare.md.

    python -m benchmarks.elsewhere --smollm2 FOLDER --data ../shared/data [--only pema|esft|state-offset]
    python -m benchmarks.elsewhere --table        only writes the page, from docs/results/compare/elsewhere.json

FOLDER holds SmolLM2-135M-Instruct as `save_pretrained` writes it. The models are made of it, of MiniLM and of books,
and stand with all finished runs in .cache/elsewhere, so that the command can be stopped and goes on.
"""
