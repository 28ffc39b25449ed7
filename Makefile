# Nothing here needs root or a system package but Python 3.11 or newer and make.
#
#   make demo     import the world's cities, query them, change them in contended transactions
#   make test     run the test suite
#   make help     the rest
#
# PYTHON=/path/to/python picks the interpreter that .venv is made with.

PYTHON ?=
BIN := .venv/bin
# Tests run in as many processes as there are processors, each with servers of its own.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-all serve test test-others test-all lint format docs bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: .venv/.has-dev ## Create .venv with all that development needs

.venv/.has-dev: pyproject.toml
	@.ci/setup .venv dev "$(PYTHON)"

# Whoever only wants to see the demo need not wait for the tools of development.
.venv/.has-demo: pyproject.toml
	@test -e .venv/.has-dev -a ! pyproject.toml -nt .venv/.has-dev || .ci/setup .venv demo "$(PYTHON)"

demo: .venv/.has-demo ## Run the demo: 34,000 cities into SQLite, queries, pages, transactions
	@$(BIN)/python -m examples.cities

demo-all: .venv/.has-demo ## Run the demo with all 234,908 cities
	@$(BIN)/python -m examples.cities --all

serve: setup ## Run the example web service on http://127.0.0.1:8000
	@$(BIN)/uvicorn examples.service.app:app

test: setup ## Run the test suite; ARGS="-k cursor" narrows it, ARGS="-n 0" runs it in one process
	@$(PYTEST) $(ARGS)

test-others: setup ## Run what depends on the Python on the others (3.11 to 3.13) that are installed
	@.ci/test-others $(ARGS)

test-all: test test-others ## Both

lint: setup ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## Format the source
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup ## Build the documentation into build/site
	@$(BIN)/mkdocs build --strict --site-dir build/site

bench: setup ## Run the benchmarks
	@$(BIN)/python -m benchmarks

clean: ## Remove what the other targets made
	rm -rf .venv .venv-3.* build dist site .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
