# make run | test | test-real | lint | bench: each sets up what it needs, and is safe to repeat.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help run test test-real prove lint format bench setup clean
help:
	@echo "make run        serve the gateway on http://127.0.0.1:8080 with a demo key"
	@echo "make test       the test suite (under 5 minutes)"
	@echo "make test-real  the tests that need heavy real parts (a llama.cpp server, ...)"
	@echo "make prove      budgets under killed, frozen and cut-off processes and stores, checked afterwards (about 4 minutes)"
	@echo "make lint       ruff and mypy --strict"
	@echo "make bench      CPU per request and per stream, against a free upstream; then each part by itself"

# A stamp for each set of packages: made anew when pyproject.toml changes.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is older"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory apt-python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[server,ratelimit,sql,prices,metrics,logging]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@# OPA's own engine, for the tests of the policies; its wheel runs on every Python and says that it wants a newer one.
	$(BIN)/python -m pip install --quiet --ignore-requires-python opa-golib-python-bindings
	@touch $@ $(VENV)/.run

$(VENV)/.real: $(VENV)/.dev
	@# llama-cpp-python comes as source: some minutes the first time, then pip keeps it.
	@command -v g++ >/dev/null || $(MAKE) --no-print-directory apt-g++
	$(BIN)/python -m pip install --quiet --editable '.[dev,real]'
	@touch $@

apt-%:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get install -y -qq --no-install-recommends $* || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $*; }; } >/dev/null; \
	else echo "'$*' is needed; install it (Debian: apt-get install $*)"; exit 1; fi

run: $(VENV)/.run
	GATEWAY_DEMO=1 HOST=127.0.0.1 $(BIN)/python -m asgi_llm_gateway serve

setup: $(VENV)/.dev

test: $(VENV)/.dev
	@command -v curl >/dev/null || $(MAKE) --no-print-directory apt-curl
	@command -v promtool >/dev/null || $(MAKE) --no-print-directory apt-prometheus
	$(BIN)/python -m pytest -m 'not real' -n 3 --dist worksteal

test-real: $(VENV)/.real
	@command -v promtool >/dev/null || $(MAKE) --no-print-directory apt-prometheus
	@command -v chromium >/dev/null || $(MAKE) --no-print-directory apt-chromium
	@command -v turnserver >/dev/null || $(MAKE) --no-print-directory apt-coturn
	$(BIN)/python -m pytest -m real

prove: $(VENV)/.dev
	$(BIN)/python -m tests.prove --seconds 60

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	@command -v nginx >/dev/null || $(MAKE) --no-print-directory apt-nginx-light
	@command -v wrk >/dev/null || $(MAKE) --no-print-directory apt-wrk
	$(BIN)/python -m benchmarks.run
	@for part in layers ledger guards guards_validation policy structured observers translation cache realtime; do \
	  echo; echo "benchmarks.$$part"; $(BIN)/python -m benchmarks.$$part || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
