#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0. Run 2026-11-29.
#
# `accelerate launch --cpu --num_processes 2` starts one process, and says nothing: two ask for MPI, and where none is found the
# launcher falls back to a plain start. The run then has one worker, half of the batch, and exit code 0. torchrun with the same
# script starts two.
# Output seen:
#   accelerate launch: 1 process, exit code 0, world of 1
#   torchrun: 2 processes, exit code 0, world of 2
# Exits 1 when accelerate starts two, or says that it does not.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "accelerate==1.15.0"
cat > "$at/train.py" <<'EOF'
import sys
from pathlib import Path

from accelerate import Accelerator

made = Accelerator(cpu=True)
Path(sys.argv[1], f"{made.process_index}").write_text(str(made.num_processes))
made.end_training()
EOF
seen() {  # NAME COMMAND...
    name=$1; shift; mkdir "$at/$name"; code=0
    HF_HOME="$at/home" "$@" "$at/train.py" "$at/$name" > "$at/$name.log" 2>&1 || code=$?
    started=$(ls "$at/$name" | wc -l)
    echo "$name: $started process$([ "$started" = 1 ] || echo es), exit code $code, world of $(cat "$at/$name/0")"
}
first=$(seen "accelerate launch" "$at/v/bin/accelerate" launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no)
echo "$first"
second=$(seen torchrun "$at/v/bin/torchrun" --nproc_per_node 2)
echo "$second"
[ "$first" = "accelerate launch: 1 process, exit code 0, world of 1" ] && [ "$second" = "torchrun: 2 processes, exit code 0, world of 2" ] &&
    ! grep -qiE "one process|single process|mpi" "$at/accelerate launch.log"
