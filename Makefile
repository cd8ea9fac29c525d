# Set-up, demo, tests and checks. Everything lives in .venv; nothing of the system's Python is touched.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/py311.txt
# Which tests `make test` runs.
TESTS ?= not benchmark
# Only Python 3.11 is locked; other versions resolve the bounds of pyproject.toml.
CONSTRAINT = $(shell $(BIN)/python -c 'import sys; print("-c $(LOCK)" if sys.version_info[:2] == (3, 11) else "")')
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Idle threads of OpenMP spin and those of OpenBLAS wait for each other, which costs most of the processor as soon
# as more runs than one test; the benchmarks measure with the libraries' own defaults.
CALM = OMP_WAIT_POLICY=PASSIVE OPENBLAS_NUM_THREADS=1

.PHONY: help demo demo-check test lint bench bench-serving bench-gateway bench-conversion bench-monitoring docs docs-estimators clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(BIN)/python:
	@bash requirements/make-venv.sh $(PYTHON) $(VENV)

$(VENV)/.demo: pyproject.toml $(LOCK) | $(BIN)/python
	@echo "Installing mlflow-deploy with its demo into $(VENV) ..."
	@$(PIP) $(CONSTRAINT) -e '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml $(LOCK) | $(BIN)/python
	@echo "Installing mlflow-deploy with all frameworks and test tools into $(VENV) ..."
	@$(PIP) $(CONSTRAINT) -e '.[test]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## Train, register, promote, deploy and watch a real model on this machine
	@$(BIN)/mlflow-deploy demo

demo-check: $(VENV)/.demo ## The demo, cleaned up at its end
	@$(BIN)/mlflow-deploy demo --no-keep

test: $(VENV)/.test ## Run every test that this machine can run
	@$(CALM) $(BIN)/python -m pytest -m "$(TESTS)" $(TESTFLAGS)

lint: $(VENV)/.test ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: bench-serving bench-gateway bench-conversion bench-monitoring ## Run the benchmarks; they print ratios and fail below their bars

bench-serving: $(VENV)/.test ## The scoring server against MLflow's and against its floor
	@$(BIN)/python -m pytest tests/benchmarks/serving -m benchmark -s

bench-gateway: $(VENV)/.test ## The way through the gateway against the direct one
	@$(BIN)/python -m pytest tests/benchmarks/gateway -m benchmark -s

bench-conversion: $(VENV)/.test ## What int8 and pruning gain over PyTorch's eager mode
	@$(BIN)/python -m pytest tests/benchmarks/conversion -m benchmark -s

bench-monitoring: $(VENV)/.test ## Drift detection on many rows, beside Evidently
	@$(BIN)/python -m pytest tests/benchmarks/monitoring -m benchmark -s

docs: $(VENV)/.test ## Write the generated parts of the documentation again
	@$(BIN)/python docs/generate.py

docs-estimators: $(VENV)/.test ## Convert and measure all models of the table in docs/estimators.md again
	@$(BIN)/python -m tests.integration.conversion.table

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist build
