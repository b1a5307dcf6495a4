# make test: everything CI runs except the linters. make check: the linters. make test-all: the slow tests too.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
RUN = .venv/bin/python

.PHONY: setup format check lint type test test-quick test-all bench clean

setup:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or 3.12 on PATH. Install one, or say make PYTHON=/path/to/it." >&2; exit 2; }
	@$(PYTHON) training/make_venv.py requirements-dev.txt

format: setup
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

check: lint type
	@# 1: right, but files that a run reads are not fetched.
	$(RUN) -m ds_configs check ds_configs/*.json ds_configs/ablations/*.json || test $$? = 1

lint: setup
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

type: setup
	$(RUN) -m mypy

# In several processes at once, but for what looks at times: a start of ranks uses little more than one core.
TOGETHER = --numprocesses auto --maxprocesses 4 --dist worksteal

test: setup
	$(RUN) -m pytest -m "not slow and not distributed and not network" $(TOGETHER)
	$(RUN) -m pytest -m "not slow and (distributed or network) and not alone" $(TOGETHER)
	$(RUN) -m pytest -m "not slow and alone"

test-quick: setup
	$(RUN) -m pytest -m "not slow and not distributed and not network and not processes" $(TOGETHER)

test-all: setup
	$(RUN) -m pytest

bench: setup
	$(RUN) benchmarks/partitions.py

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache
