# What one does here, as verbs. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
# Which torch: a newer one within pyproject's bounds will do, and so will options of pip before the name.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo install test check format fuzz soak clean

help: ## list what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' $(MAKEFILE_LIST) | awk '{ name = $$1; $$1 = ""; printf "make %-8s%s\n", name, $$0 }'

demo: $(VENV)/installed ## install, start the embedded model, send it a recording, print the words with their times
	@$(BIN)/moshi-server demo

install: $(VENV)/installed ## install into .venv what serving needs

test: check ## everything that must hold before a change goes in
	$(BIN)/python -m pytest -n 2

check: $(VENV)/installed-dev ## style, types and layers only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/installed-dev ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(VENV)/installed-dev ## feed every decoder with broken input: make fuzz INPUTS=1000000, or MINUTES=5
	@$(PIP) install --quiet --group fuzz || echo "no atheris for this Python: the search is not guided by coverage"
	$(BIN)/python benchmarks/fuzz.py $(if $(MINUTES),--minutes $(MINUTES),--inputs $(or $(INPUTS),100000))

soak: $(VENV)/installed-dev ## streams of all modules come and go: make soak MINUTES=30
	$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),30)

clean: ## remove what was built, .venv too
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo not here):" \
	       "install one, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV): this takes a minute or two"
	@$(PIP) install --quiet --upgrade 'pip>=25.1'
	@$(PIP) install --quiet $(TORCH)
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/installed
	@echo "Installing the tools of development into $(VENV)"
	@$(PIP) install --quiet --group dev
	@touch $@
