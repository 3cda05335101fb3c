# Every target makes what it needs: a virtual environment in .venv with the package and its
# development tools. Needed beforehand: make and a CPython 3.10-3.13 (PYTHON=... to choose one).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check bench proto venv clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## run a small search service and compare the transports (< 2 min)
	@$(BIN)/python -m examples.search.demo

test: $(READY) ## run the tests, those on a real Ray Serve included
	$(BIN)/python -m pytest -q

check: $(READY) ## formatting, lint, types, and whether the generated code is up to date
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --check

bench: $(READY) ## time the pure parts of a call; BENCH_ARGS are pytest-benchmark's
	$(BIN)/python -m pytest -q bench --benchmark-columns=min,median,ops $(BENCH_ARGS)

proto: $(READY) ## regenerate serve_grpc/_generated from protos/
	$(BIN)/python protos/generate.py

venv: $(READY) ## make or update .venv

clean: ## remove .venv, caches and build output
	rm -rf $(VENV) build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no '$(PYTHON)' found; name a CPython 3.10-3.13: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: '$(PYTHON)' is $$($(PYTHON) --version 2>&1); CPython 3.10-3.13 is needed:" \
	       "make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' has no venv module (Debian, Ubuntu: install python3-venv)" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version), about a minute ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
