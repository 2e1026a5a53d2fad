# The verbs that people and CI share. Each one sets up the virtual environment that it needs.
#   make demo     train on a small dataset for half a minute and show what was recorded
#   make test     check, then every test; those with frameworks on Python 3.11 alone
#   make check    lint, format and types
#   make bench    measure the overhead, beside the raw OpenTelemetry SDK
#   make docs     write docs/telemetry.md and the dashboards anew
#   make stack    start a Collector, Prometheus, Alertmanager, Jaeger and Grafana; PERIFLOW_STACK=native: without Docker
# Variables: VENV (default .venv), PYTHON (default python3; 3.10 or newer).

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
SOURCES := periflow_otel tests examples benchmarks scripts/check_dashboards scripts/dashboards scripts/demo scripts/stack scripts/telemetry_table

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs stack

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.has-examples
	$(BIN)/python scripts/demo

test: check $(VENV)/.has-tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.has-tests
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/mypy tests/scripts/typed.py

bench: $(VENV)/.has-package
	$(BIN)/python benchmarks/bench_step.py $(BENCH_ARGS)

docs: $(VENV)/.has-package
	$(BIN)/python scripts/telemetry_table > docs/telemetry.md
	$(BIN)/python scripts/telemetry_table registry > docs/registry/periflow.yaml
	$(BIN)/python scripts/dashboards

stack:
	$(PYTHON) scripts/stack

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.has-package: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.has-examples: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[examples]'
	@touch $@

# torch comes first and alone: left to choose, a resolver may take a build with gigabytes of CUDA.
$(VENV)/.has-tests: pyproject.toml | $(BIN)/python
	$(PIP) "torch==2.13.0; python_version == '3.11'"
	$(PIP) --editable '.[examples,frameworks,test,dev]'
	@touch $@
