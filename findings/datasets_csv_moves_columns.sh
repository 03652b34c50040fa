#!/usr/bin/env bash
# `datasets` moves every column of a CSV by one where the first row has a field too many.
#
# Versions: datasets 5.2.0, pyarrow 26.0.1, pandas 3.1.1.
# What runs: `load_dataset("csv", ...)` on a file with the header `text,label` whose rows have a third field (a note that
#   somebody added); then one where only the second row has it.
# Expected: an error that names the row, in both cases.
# What came: the second file is refused. The first is read without a word: pandas takes the first field of each row for an
#   index, so `text` holds the labels, `label` holds the notes, and the texts lie in a new column
#   `__index_level_0__`. A model is then trained to tell notes from labels.
# Output:
#   every row with a note: {'text': 'bad', 'label': 0, '__index_level_0__': 'film number 0'}
#   a note in the second row only: DatasetGenerationError
# Who it hurts: who exports a sheet with a remark behind the last named column.
# Our test: tests/adapt/test_rows.py (test_a_row_has_as_many_cells_as_the_header).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
cd "$work"
HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$work/cache" HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$work/venv/bin/python" - 2>"$work/log" <<'EOF' || { cat "$work/log"; exit 1; }
from pathlib import Path

from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError

label = ["bad", "good"]
Path("all.csv").write_text("text,label\n" + "".join(f"film number {i},{label[i % 2]},{i % 3}\n" for i in range(4)))
Path("one.csv").write_text("text,label\nfilm number 0,bad\nfilm number 1,good,1\n")
row = load_dataset("csv", data_files="all.csv", split="train")[0]
try:
    other = load_dataset("csv", data_files="one.csv", split="train")[0]
except DatasetGenerationError as e:
    other = type(e).__name__
print("every row with a note:", row)
print("a note in the second row only:", other)
moved = {"text": "bad", "label": 0, "__index_level_0__": "film number 0"}
raise SystemExit((row, other) != (moved, "DatasetGenerationError"))
EOF
