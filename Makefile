# Needs Python 3.11 or newer and make; everything else goes into .venv.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.setup-done

# The first interpreter that is new enough and can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && { command -v "$$python"; break; }; done)

# Used where it is present; `make UV= ...` does without.
UV ?= $(or $(shell command -v uv 2>/dev/null),$(wildcard $(BIN)/uv))

# With AGENTSRV_CI set, a skipped test is a failure (.ci/no_skips.py).
PYTEST := $(if $(AGENTSRV_CI),PYTHONPATH=.ci $(BIN)/python -m pytest -rs -p no_skips,$(BIN)/python -m pytest)
# Neighbours stay together, for what a module's tests share; who has done its part takes over.
PARALLEL := --numprocesses=auto --maxprocesses=8 --dist=worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test lint types docs soak bench figures counts lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make .venv with everything that the lock names

$(STAMP): requirements.lock pyproject.toml
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		if [ -z "$(PYTHON)" ]; then \
			echo "No Python >= 3.11 with venv and ensurepip was found." >&2; \
			echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv)," >&2; \
			echo "or name it: make PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $(PYTHON)"; \
		"$(PYTHON)" -m venv --clear $(VENV); \
	fi
	@echo "Installing what requirements.lock names into $(VENV)"
	@if [ -n "$(UV)" ]; then \
		export UV_SYSTEM_CERTS="$${UV_SYSTEM_CERTS:-true}"; \
		"$(UV)" pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock \
		&& "$(UV)" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . \
		&& touch $@ && exit 0; \
		echo "uv did not succeed; trying pip" >&2; \
	fi; \
	set -e; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore; \
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .; \
	touch $@

demo: $(STAMP) ## start a server, run a task, watch its events
	@$(BIN)/python -m examples.demo

serve: $(STAMP) ## serve the example's knowledge until Ctrl-C
	@$(BIN)/agentsrv serve --knowledge examples/knowledge

test: $(STAMP) ## run the tests (without the long ones) on all cores; COVER=1 measures coverage, too
	$(PYTEST) $(PARALLEL) -m "not soak and not alone" $(if $(COVER),--cov --cov-report=)
	$(PYTEST) -m "alone and not soak" $(if $(COVER),--cov --cov-append --cov-report=term)

lint: $(STAMP) ## check style, format and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP) ## check the types
	$(BIN)/mypy $(wildcard agentsrv tests examples)

docs: $(STAMP) ## check the links between the Markdown files, and make a site of them in build/site
	$(BIN)/python .ci/check_links.py
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --config-file .ci/mkdocs.yml

soak: $(STAMP) ## run the tests that take minutes
	$(PYTEST) -m soak --timeout=3600

bench: $(STAMP) ## measure all that docs/performance.md shows, and write it there (a quarter of an hour)
	@$(BIN)/python -m tests.bench

figures: $(STAMP) ## write the tables and plots of docs/performance.md anew from docs/performance.json
	@$(BIN)/python -m tests.bench.page

counts: $(STAMP) ## count the work of a task, and accept it as what the tests expect
	@$(BIN)/python -m tests.bench.counts

lock: ## resolve requirements.lock anew from pyproject.toml (needs uv)
	@test -n "$(UV)" || { echo "make lock needs uv on the PATH (pip install uv)" >&2; exit 1; }
	"$(UV)" pip compile pyproject.toml --all-extras --group dev --output-file requirements.lock \
		--universal --python-version 3.11 --generate-hashes --upgrade --quiet \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

clean: ## remove .venv and everything that tools left behind
	rm -rf $(VENV) .ci/.cache .coverage .coverage.* htmlcov build dist
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
