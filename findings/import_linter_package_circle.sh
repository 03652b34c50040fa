#!/usr/bin/env bash
# import-linter's `acyclic_siblings` does not see a circle between a package and its own module.
#
# Versions: import-linter 2.16, grimp 3.19.
# What runs: a package whose `__init__.py` imports from `pkg.b`, while `pkg/b.py` imports from `pkg`; the contract
#   `acyclic_siblings` for `pkg`. Then the same circle between two modules, `pkg.b` and `pkg.c`.
# Expected: both are broken. grimp's own graph has both imports of the first one.
# What came: the first is kept, the second is broken. A package's `__init__.py` is nobody's sibling, so the commonest circle
#   of a Python package passes the contract that is named after circles.
# Output:
#   edges of the graph: pkg -> pkg.b, pkg.b -> pkg
#   package and its module: KEPT
#   two modules: BROKEN
# Who it hurts: who relies on the contract to keep a package free of import cycles.
# Our test: tests/test_house.py (test_no_file_imports_itself_by_way_of_others).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile import-linter==2.16 grimp==3.19
cd "$work"
PATH="$work/venv/bin:$PATH" PYTHONPATH="$work" PYTHONDONTWRITEBYTECODE=1 "$work/venv/bin/python" - <<'EOF'
import subprocess
from pathlib import Path

import grimp

contract = "[importlinter]\nroot_package = pkg\n[importlinter:contract:1]\nname = c\ntype = acyclic_siblings\nancestors = pkg\n"


def verdict(files):
    for name, text in files.items():
        Path("pkg", name).write_text(text)
    run = subprocess.run(["lint-imports", "--no-cache"], capture_output=True, text=True)
    return next(word for word in ("KEPT", "BROKEN") if f"c {word}" in run.stdout)


Path("pkg").mkdir()
Path(".importlinter").write_text(contract)
own = verdict({"__init__.py": "from .b import y\nx = 1\n", "b.py": "from . import x\ny = 2\n", "c.py": ""})
graph = grimp.build_graph("pkg", cache_dir=None)
edges = [(a, b) for a in sorted(graph.modules) for b in sorted(graph.find_modules_directly_imported_by(a))]
two = verdict({"__init__.py": "", "b.py": "from . import c\n", "c.py": "from . import b\n"})
print("edges of the graph:", ", ".join(f"{a} -> {b}" for a, b in edges))
print("package and its module:", own)
print("two modules:", two)
raise SystemExit((edges, own, two) != ([("pkg", "pkg.b"), ("pkg.b", "pkg")], "KEPT", "BROKEN"))
EOF
