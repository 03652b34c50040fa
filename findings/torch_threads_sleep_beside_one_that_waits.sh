#!/usr/bin/env bash
# torch 2.13.0 for Linux on a CPU, with the libgomp in its wheel. Run 2026-11-30, two cores.
#
# One product in a second Python thread makes every later product of the first one slower, for as long as that second thread is
# alive, though it computes no more. Each Python thread that computes gets its own team from libgomp, and keeps it; while all
# teams together have more threads than there are processors, libgomp lets a thread turn a hundred times and sleep, in place of
# 300,000 times, so that each operation wakes its helpers anew. It shows in the process's voluntary switches: about one or two for
# each product, in place of none. A small product takes twice the time and more; a language model that answers in a background thread, after
# it was loaded in the main one, took 1.4 times as long for 32 LoRA tenants. torch.set_num_threads does not bring it back. What
# does: `omp_pause_resource_all`, called by the thread that waits, which ends its team.
# Output seen (voluntary switches in 2,000 products):
#   one thread computes:                       74
#   beside one that has computed, and waits: 7998
#   when that one has let its team go:         82
# Exits 1 when that changes.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" numpy
cat > "$at/run.py" <<'EOF'
import ctypes
import os
import resource
import sys
import threading

import torch

cores = len(os.sched_getaffinity(0))
if cores < 2:
    sys.exit("wants two processors: with one there is no team")
torch.set_num_threads(cores)
x = torch.randn(256, 256)
with open("/proc/self/maps") as f:
    gomp = ctypes.CDLL(next(line.split()[-1] for line in f if "libgomp" in line))


def switches():
    for _ in range(50):
        x @ x
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(2000):
        x @ x
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before


computed, go_on, let_go, end = (threading.Event() for _ in range(4))


def other():
    x @ x
    computed.set()
    go_on.wait()
    gomp.omp_pause_resource_all(2)
    let_go.set()
    end.wait()


alone = switches()
thread = threading.Thread(target=other)
thread.start()
computed.wait()
beside = switches()
go_on.set()
let_go.wait()
after = switches()
end.set()
thread.join()
print("one thread computes:                     ", f"{alone:4d}")
print("beside one that has computed, and waits: ", f"{beside:4d}")
print("when that one has let its team go:       ", f"{after:4d}")
sys.exit(0 if beside > 1500 and beside > 3 * alone and beside > 3 * after else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
