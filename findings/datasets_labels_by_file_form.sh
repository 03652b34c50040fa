#!/usr/bin/env bash
# `datasets` reads the same labels as other things from JSON lines than from CSV.
#
# Versions: datasets 5.2.0, pyarrow 26.0.1, pandas 3.1.1.
# What runs: `load_dataset("json", ...)` and `load_dataset("csv", ...)` on files with the same texts in a column `label`.
# Expected: a JSON string stays a string; whatever CSV makes of a cell, both files have the same labels.
# What came: neither. Quoted dates in JSON become timestamps, so the label "2024-01-01" gets a time that nobody wrote; one
#   label of another form turns the whole column back into strings. CSV keeps dates, and turns "001" into 1, "NA"
#   into a missing label and "True" into a boolean, which JSON keeps. A classifier trained on one file and measured
#   on the other has other labels; nothing is said.
# Output:
#   2024-01-01, 2024-01-02: json [datetime.datetime(2024, 1, 1, 0, 0), datetime.datetime(2024, 1, 2, 0, 0)], csv as written
#   2024-01-01, unknown: json as written, csv as written
#   001, 002: json as written, csv [1, 2]
#   NA, yes: json as written, csv [None, 'yes']
#   True, False: json as written, csv [True, False]
# Who it hurts: who keeps training rows in one form and evaluation rows in another.
# Our test: tests/adapt/test_rows.py (test_every_format_gives_the_words_of_the_file).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
cd "$work"
HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$work/cache" HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$work/venv/bin/python" - <<'EOF'
import datetime
import json
from pathlib import Path

from datasets import load_dataset

first, second = datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2)
seen = {  # labels in the file, as JSON gives them, as CSV gives them
    ("2024-01-01", "2024-01-02"): ([first, second], ["2024-01-01", "2024-01-02"]),
    ("2024-01-01", "unknown"): (["2024-01-01", "unknown"], ["2024-01-01", "unknown"]),
    ("001", "002"): (["001", "002"], [1, 2]),
    ("NA", "yes"): (["NA", "yes"], [None, "yes"]),
    ("True", "False"): (["True", "False"], [True, False]),
}
still = True
for i, (labels, want) in enumerate(seen.items()):
    Path(f"{i}.json").write_text("".join(json.dumps({"text": "a", "label": x}) + "\n" for x in labels))
    Path(f"{i}.csv").write_text("text,label\n" + "".join(f"a,{x}\n" for x in labels))
    got = tuple(list(load_dataset(k, data_files=f"{i}.{k}", split="train")["label"]) for k in ("json", "csv"))
    still &= got == want
    said = ["as written" if x == list(labels) else x for x in got]
    print(f"{', '.join(labels)}: json {said[0]}, csv {said[1]}")
raise SystemExit(not still)
EOF
