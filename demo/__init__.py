"""What `make demo` runs: sixteen tenants of one small encoder, trained, saved, and served in one batch."""

import os

# Threads that wait sleep: spinning makes two threads slower than one wherever somebody else uses the cores, too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
