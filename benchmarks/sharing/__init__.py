"""Pretrained models made smaller by every method of `share` at equal bytes, healed alike: docs/results/share.md.

    python -m benchmarks.sharing --data ../shared/data --smollm2 FOLDER --minutes 60
    python -m benchmarks.sharing --table        only writes the page, from docs/results/share.json

Every finished run is kept in docs/results/share.json, so that it can be stopped and goes on.
"""
