# Everything that one does with this checkout. `make` alone lists it.
#
# Needs: Python 3.11 to 3.13, git, make. Go (1.26 or newer) for the real control plane of the
# end-to-end tests; its binary is built once and kept in ~/.cache/tower-testbed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help run test lint pure e2e testbed bench fuzz soak lock format clean

help: ## List the targets
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/.run ## See it work: server, agent and a member on loopback, kubectl through the tunnel
	@$(BIN)/python -m tests.demo

test: $(VENV)/.dev lint pure e2e ## All checks and tests, the end-to-end ones with a real control plane

lint: $(VENV)/.dev ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

pure: $(VENV)/.dev ## Tests that need no control plane
	$(BIN)/pytest --ignore=tests/e2e -m "not e2e"

e2e: $(VENV)/.dev ## Tests with a real control plane and real kubectl (builds it if Go is there)
	@$(BIN)/python -m tests.testbed build --if-possible
	@if $(BIN)/python -m tests.testbed path >/dev/null; then $(BIN)/pytest -m e2e; fi

testbed: $(VENV)/.dev ## Build the real control plane (a cold build takes up to 20 minutes)
	$(BIN)/python -m tests.testbed build

bench: $(VENV)/.dev ## Requests per second, latency, throughput, beside a direct connection
	$(BIN)/python -m bench

fuzz: $(VENV)/.dev ## Look for inputs that break parsers and sessions; SECONDS=60 for each target
	$(BIN)/python -m tests.fuzz run --seconds $(or $(SECONDS),60)

soak: $(VENV)/.dev ## Ten minutes of 100 drops, then ten of mixed load with faults: nothing breaks or leaks
	@$(BIN)/python -m tests.testbed build --if-possible
	DROP_SECONDS=600 SOAK_SECONDS=600 $(BIN)/pytest -s tests/e2e/test_resume.py tests/soak

format: $(VENV)/.dev ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Exact versions with hashes for all supported Pythons and platforms, from pyproject.toml.
lock: ## Renew requirements.lock and requirements-dev.lock
	@test -x .stamps/uv/bin/uv || { $(PYTHON) -m venv .stamps/uv && .stamps/uv/bin/pip install --quiet uv; }
	.stamps/uv/bin/uv pip compile pyproject.toml --extra demo --universal --python-version 3.11 \
	  --generate-hashes --upgrade --quiet --no-header --output-file requirements.lock
	.stamps/uv/bin/uv pip compile pyproject.toml --extra demo --extra dev --universal --python-version 3.11 \
	  --generate-hashes --upgrade --quiet --no-header --constraint requirements.lock --output-file requirements-dev.lock

clean: ## Remove what these targets made in the checkout
	rm -rf $(VENV) .stamps dist build bench/out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Made anew if it was never finished: pip comes last.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Tower needs Python 3.11 to 3.13; '$(PYTHON)' is another one. Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)

# What is installed is noted inside the virtual environment, so that it goes with it.
$(VENV)/.run: requirements.lock pyproject.toml | $(BIN)/pip
	@echo "installing what Tower needs to run (once) ..."
	@$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(BIN)/pip
	@echo "installing what the tests need (once) ..."
	@$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.run
