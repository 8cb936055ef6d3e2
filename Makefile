# Needs Python 3.11 or newer and make; everything else goes into .venv.

VENV := .venv
BIN  := $(VENV)/bin

# Used where it is present; `make UV= ...` does without.
UV ?= $(or $(shell command -v uv 2>/dev/null),$(wildcard $(BIN)/uv))

# With NO_SKIPS set, a skipped test is a failure (.ci/no_skips.py).
PYTEST := $(if $(NO_SKIPS),PYTHONPATH=.ci $(BIN)/python -m pytest -rs -p no_skips,$(BIN)/python -m pytest)
# A test starts many processes, which read modules that are compiled already; the other variables
# would change what is installed and tested.
unexport PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH PYTHONOPTIMIZE PYTHONWARNINGS

# Two stages: RUN is agentsrv with what it needs at run time, ALL has the tools of its developers
# too. Each is done in no time where nothing has changed. PYTHON=... names the interpreter.
RUN := installed-run
ALL := installed-all
SET_UP = @VENV='$(VENV)' UV='$(UV)' .ci/set_up

# Tests of one module run in one process, which shares their fixtures; a process that has finished
# its part takes tests from another.
PARALLEL := --numprocesses=auto --maxprocesses=8 --dist=worksteal

.DEFAULT_GOAL := help
.PHONY: $(RUN) $(ALL) help setup demo serve check test slow lint types docs soak bench figures \
	counts lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(ALL) ## make .venv with everything that requirements.lock names

$(RUN):
	$(SET_UP) requirements-run.lock

$(ALL):
	$(SET_UP) requirements-run.lock requirements.lock

demo: $(RUN) ## start a server, run a task, watch its events
	@$(BIN)/agentsrv demo

serve: $(RUN) ## serve the example's knowledge until Ctrl-C
	@$(BIN)/agentsrv serve --knowledge agentsrv/cli/demo/knowledge

check: $(ALL) ## run the unit tests: less than a minute on two cores
	$(PYTEST) $(PARALLEL) -m "not (slow or soak)" tests/unit

test: $(ALL) ## run the tests that fit into a few minutes; COVER=1 measures coverage, too
	$(PYTEST) $(PARALLEL) -m "not (slow or soak or alone)" $(if $(COVER),--cov --cov-report=)
	$(PYTEST) -m "alone and not soak" $(if $(COVER),--cov --cov-append --cov-report=)

slow: $(ALL) ## run the slow tests, and more seeds of each simulation
	$(PYTEST) $(PARALLEL) -m "(slow or seeds) and not soak" --seeds=100 \
		$(if $(COVER),--cov --cov-append --cov-report=term)

lint: $(ALL) ## check style, format, imports between packages, and phrases
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/check_phrases.py

types: $(ALL) ## check the types
	$(BIN)/mypy $(wildcard agentsrv tests examples)

docs: $(ALL) ## check the links between the Markdown files, and make a site of them in build/site
	$(BIN)/python .ci/check_links.py
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --config-file .ci/mkdocs.yml

soak: $(ALL) ## run the tests that take minutes
	$(PYTEST) -m soak --timeout=3600
	$(PYTEST) $(PARALLEL) -m seeds --seeds=3000

bench: $(ALL) ## measure every figure of the performance page and update the page (15 minutes)
	@$(BIN)/python -m tests.bench

figures: $(ALL) ## regenerate the performance page from its measured figures
	@$(BIN)/python -m tests.bench.page

counts: $(ALL) ## count the work of a task, and accept it as what the tests expect
	@$(BIN)/python -m tests.bench.counts

LOCK := --universal --python-version 3.11 --generate-hashes --quiet \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: ## resolve both lock files anew from pyproject.toml (needs uv)
	@test -n "$(UV)" || { echo "make lock needs uv on the PATH (pip install uv)" >&2; exit 1; }
	"$(UV)" pip compile pyproject.toml --all-extras --group dev --output-file requirements.lock --upgrade $(LOCK)
	"$(UV)" pip compile pyproject.toml --group build --constraint requirements.lock \
		--output-file requirements-run.lock $(LOCK)

clean: ## remove .venv, and all files that tools have made
	rm -rf $(VENV) .ci/.cache .coverage .coverage.* htmlcov build dist
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
