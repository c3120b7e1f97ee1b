# `make` prints what there is to make. Everything happens in .venv; PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
DOCS := $(VENV)/.docs
ARGS ?=
# Tests side by side. A process takes 1 to 2 GB, and some start others: no more than there are cores.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup run search test test-slow lint docs ui bench bench-search gpu clean

help: ## print these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv and install everything, once

# A virtual environment that broke half-way has no .ready and is made again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] < (3, 14); sys.exit(0 if ok else "Python 3.10 to 3.13 is needed, this is " + sys.version.split()[0] + "; use make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

run: $(READY) ## the whole pipeline on embedded real images (minutes); ARGS="seed=1 ..." overrides
	$(BIN)/sseg-nase experiment=quickstart $(ARGS)

search: $(READY) ## a search for small networks on embedded real images (minutes); ARGS="seed=1 ..." overrides
	$(BIN)/sseg-nase experiment=search_digits $(ARGS)

test: $(READY) ## the fast tests and the linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

# One after the other: they take both cores themselves, and some measure.
test-slow: $(READY) ## the slow tests
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(READY) ## format, lint, check types and imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# What MkDocs says of its own future versions is no warning about these pages.
docs: $(DOCS) ## the documentation as a web site, in site/; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

ui: $(READY) ## the MLflow UI on the default store
	@echo "MLflow: http://127.0.0.1:$(or $(PORT),5000)/#/experiments?workflowType=machine_learning"
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	  $(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/mlflow.db \
	  --workers 1 --port $(or $(PORT),5000)

bench: $(PEERS) ## our speed beside the alternatives; ARGS="--only views", --list, --profile
	$(BIN)/python -m benchmarks.suite $(ARGS)

bench-search: $(READY) ## search strategies on NAS-Bench-201, in TABLE or SSEG_NASE_DATA; ARGS="--only gp"
	$(BIN)/python benchmarks/search.py $(or $(TABLE),$(SSEG_NASE_DATA),data) $(ARGS)

gpu: $(READY) ## what only a GPU can show, in 8 minutes: a table in OUT, by default gpu-results
	PYTHON=$(BIN)/python bash benchmarks/gpu.sh $(or $(OUT),gpu-results) $(ARGS)

# Without them, say where there is no network, their rows are skipped.
$(PEERS): $(READY)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]' && touch $@

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

clean: ## remove .venv, caches and build leftovers; runs, data and mlflow.db stay
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
