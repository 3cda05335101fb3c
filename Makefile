# Every target makes what it needs: a virtual environment in .venv with the package and its
# development tools, one in .venv-proto with what writes the generated code. Needed beforehand:
# make and a CPython 3.10-3.13 (PYTHON=... to choose one).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROTO := .venv-proto
# In several processes; which test goes with which: tests/tiers.py.
SIDE_BY_SIDE := $(BIN)/python -m pytest -q --dist loadscope --durations 60 -r fER $(TEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo voice test test-all test-faults soak test-long fuzz test-ray-versions test-dependencies check bench bench-quick wrk proto venv clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## run a small search service and compare the transports (< 2 min)
	@$(BIN)/python -m examples.search.demo

voice: $(READY) ## speak into a chain of streams over three deployments, and listen to what comes out
	@$(BIN)/python -m examples.voice.run

test: $(READY) ## run what shows a break in our code, on a real Ray Serve too (< 6 min)
	$(SIDE_BY_SIDE) -n 3 -m "not full and not long and not soak"

test-all: $(READY) ## run the rest: Serve's own transports, drivers with a Ray of their own (20 to 25 minutes)
	$(SIDE_BY_SIDE) -n 2 -m "full and not long and not soak"

test-faults: $(READY) ## inject every fault of docs/reliability.md, and write down the figures
	$(BIN)/python -m pytest -q -m "not soak" --fault-figures .faults.json tests/faults tests/property

soak: $(READY) ## a million calls, 30,000 streams there, reconnects, cancels: memory, files, tasks stay flat (< 10 min)
	$(BIN)/python -m pytest -q -m soak --fault-figures .soak.json tests/faults/test_soak.py

test-long: $(READY) ## run the tests that take minutes: a million mutated frames, many to a server
	$(BIN)/python -m pytest -q -m long

fuzz: $(READY) ## fuzz the protocol for a minute (FUZZ_SECONDS=3600 for an hour)
	$(BIN)/python -m tests.security.fuzz $(FUZZ_SECONDS)

test-ray-versions: $(READY) ## run the tests of a real Serve on each supported Ray (RAY_VERSIONS=2.57 for one)
	@$(BIN)/python -m tests.ray.versions $(RAY_VERSIONS)

test-dependencies: $(READY) ## run the tests with the oldest and the newest dependencies (DEPENDENCIES=oldest for one)
	@$(BIN)/python -m tests.dependencies $(DEPENDENCIES)

check: $(READY) $(PROTO)/.ready ## formatting, lint, types, and whether the generated code is up to date
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PROTO)/bin/python protos/generate.py --check

bench: $(READY) wrk ## compare with Ray Serve's own transports (< 20 min); BENCH_ARGS are its flags
	@$(BIN)/python -m bench $(BENCH_ARGS)

bench-quick: $(READY) ## the same for the key cases only (< 3 min)
	@$(BIN)/python -m bench --quick $(BENCH_ARGS)

wrk: # for the HTTP cases; without it the run says that they failed, and why
	@command -v wrk >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  echo "installing wrk ..." && apt-get update -qq && apt-get install -y -qq wrk >/dev/null; } || \
	  echo "note: no wrk, the HTTP cases will fail; Debian, Ubuntu: apt-get install wrk" >&2

proto: $(PROTO)/.ready ## regenerate serve_grpc/_generated from protos/
	$(PROTO)/bin/python protos/generate.py

venv: $(READY) ## make or update .venv

clean: ## remove the virtual environments, caches and build output
	rm -rf $(VENV) $(PROTO) .venv-ray .venv-deps .fuzz build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
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
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade \
	  --upgrade-strategy eager -e '.[dev]'
	@touch $@

$(PROTO)/.ready: protos/requirements.txt | $(READY)
	@echo "making $(PROTO) ..."
	@$(BIN)/python -m venv $(PROTO)
	@$(PROTO)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
