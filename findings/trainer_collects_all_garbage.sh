#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0. Run 2026-11-29.
#
# Trainer.train() begins with a full collection of Python's garbage: it calls Accelerator.free_memory(), which calls gc.collect().
# On a CPU too, where there is no device memory to give back. A full collection looks at every object of the process, so a sweep of
# many small trainings, or a test suite, pays for all that is imported each time, however little it trains. Objects that were
# frozen (gc.freeze) are left out of it.
# Output seen (with seconds, which are not compared: 0.84 and 0.00 here):
#   one step of training: 1 full collection, asked for by accelerate
#   it looks at 200,000 objects or more: True; after gc.freeze: False
# Exits 1 when a training begins without one.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0"
cat > "$at/run.py" <<'EOF'
import gc
import sys
import tempfile
import time
import traceback

import torch
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(1)}] * 2


def trained(folder):
    """What asked for full collections while one step ran, with the objects that there were to look at."""
    how = TrainingArguments(folder, max_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True)
    one, seen, began = Trainer(BertForSequenceClassification(small), how, train_dataset=rows), [], [0.0]

    def told(phase, about):
        if about["generation"] == 2:
            if phase == "start":
                began[0] = time.perf_counter()
                who = next((f.filename for f in reversed(traceback.extract_stack()[:-1])), "")
                seen.append([who, len(gc.get_objects()), 0.0])
            else:
                seen[-1][2] = time.perf_counter() - began[0]

    one.remove_callback(PrinterCallback)
    gc.disable()  # none but those that are asked for
    gc.callbacks.append(told)
    one.train()
    gc.callbacks.remove(told)
    gc.enable()
    return seen


with tempfile.TemporaryDirectory() as folder:
    first = trained(folder)
    gc.freeze()
    second = trained(folder)
asked = all("accelerate" in who for who, _, _ in first)
print(f"one step of training: {len(first)} full collection, asked for by {'accelerate' if asked else first}")
most = [max((n for _, n, _ in found), default=0) for found in (first, second)]
print(f"it looks at 200,000 objects or more: {most[0] >= 200_000}; after gc.freeze: {most[1] >= 200_000}")
print(f"seconds: {first[0][2]:.2f}, {second[0][2]:.2f}", file=sys.stderr)
EOF
"$at/v/bin/python" -W ignore "$at/run.py" 2> "$at/err" | tee "$at/out"
grep seconds "$at/err" || true
diff "$at/out" - <<'EOF'
one step of training: 1 full collection, asked for by accelerate
it looks at 200,000 objects or more: True; after gc.freeze: False
EOF
