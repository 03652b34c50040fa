"""Methods that are here a form of another one, an option or an optimizer: rows of their own in docs/results/compare.md.

    python -m benchmarks.forms [--only qGOFT]     runs them as `benchmarks.compare` runs its methods
    python -m benchmarks.forms --table               only writes the page, from docs/results/compare/forms.json

Finished runs are kept in .cache/forms, with a base that is made, so that the command can be stopped and goes on.
"""
