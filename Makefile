# On a machine with Python >= 3.11 and make, `make demo` and `make test` are enough: both set up .venv first.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-from-lock

# An interpreter to prefer, for example: make test PYTHON=python3.13
PYTHON ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos lint format typecheck docs lock clean

# How many steps `make chaos` takes: so many are about an hour on two cores
STEPS ?= 20000

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## create .venv with the exact versions of requirements.lock

demo: $(STAMP)  ## the whole thing on a built-in knowledge base: ingest, embed, train, evaluate, ask
	@$(BIN)/hmn demo

# Two processes, each with a small Ray of its own: most of what a test of actors does is wait for them to start.
test: lint typecheck  ## everything CI runs: ruff, mypy, import direction, pytest
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

chaos: $(STAMP)  ## the tests of a living memory and of faults, an hour: make chaos STEPS=20000
	mkdir -p build && rm -f build/chaos.jsonl
	HMN_CHAOS_STEPS=$(STEPS) HMN_CHAOS_LOG=$(CURDIR)/build/chaos.jsonl $(BIN)/python -m pytest --timeout 0 tests/stateful tests/faults
	$(BIN)/python tests/stateful/chaos_log.py build/chaos.jsonl

lint: $(STAMP)  ## ruff and the import direction
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

typecheck: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(STAMP)  ## the documentation as a site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock:  ## take the newest versions pyproject.toml allows, and write them to requirements.lock
	rm -rf build/lock-venv
	$(find-python) && "$$python" -m venv build/lock-venv
	build/lock-venv/bin/python -m pip install --upgrade --editable '.[dev,docs,tensorboard]' 'setuptools>=77'
	@{ sed -n '/^#/p' requirements.lock; \
	   build/lock-venv/bin/python -m pip freeze --all --exclude-editable \
	   | grep -Ev '^(#|pip=|nvidia-|triton|cuda-)' | sed -E 's/\+[A-Za-z0-9.]+$$//' | sort -f; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean:  ## remove .venv and caches; runs/ and memories/ stay
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info

# Sets $$python to the first interpreter that is new enough and can create virtual environments, or says what is missing.
define find-python
python=; seen=; \
for name in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
  version=$$("$$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
  seen="$$seen $$name=$$version"; \
  "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
  python=$$name; break; \
done; \
if [ -z "$$python" ]; then \
  echo "error: Python >= 3.11 with the venv module is needed; found:$${seen:- none}." >&2; \
  echo "       Install it (Debian: python3 python3-venv), or name one: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3.11" >&2; \
  exit 1; \
fi
endef

# A virtual environment whose creation was interrupted, or whose Python is gone, has no working pip: it is made anew.
$(STAMP): requirements.lock pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(find-python); \
	  echo "Creating $(VENV) with $$python ($$("$$python" --version))"; \
	  rm -rf $(VENV); "$$python" -m venv $(VENV); \
	fi
	@echo "Installing the exact versions of requirements.lock into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
