# Everything starts from nothing but Python 3.11, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test e2e slow check wheel clean help

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

demo: $(VENV)/.installed  ## install, train on embedded data, serve, ask the endpoint
	$(BIN)/python jobs/demo.py

test: $(VENV)/.installed-test  ## install with test extras, run the default suite in two processes
	$(BIN)/python -m pytest -m "not slow and not gpu and not e2e" -n 2 --dist loadfile --no-loadscope-reorder

e2e: $(VENV)/.installed-test  ## whole jobs and killed processes, as users and clusters meet them
	$(BIN)/python -m pytest -m "e2e and not slow"

slow: $(VENV)/.installed-test  ## replicas of the papers over several seeds; every job submitted to a cluster; WaffleCLIP on two workers
	$(BIN)/python -m pytest -m "slow"

check: $(VENV)/.installed-dev wheel  ## style, types, and whether the wheel imports on its own
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.installed-dev
	rm -rf dist build/wheel
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel dist/*.whl
	cd build/wheel && PYTHONPATH=. ../../$(BIN)/python -P ../../tests/wheel.py

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), some minutes the first time"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), some minutes the first time"
	$(PIP) --editable ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

clean:  ## build results; outputs/ and the environment stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
