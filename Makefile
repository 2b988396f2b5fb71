# The two commands a user needs: `make train` and `make test`. Both set everything up first.
.DEFAULT_GOAL := help
.PHONY: help setup train test check lint types bounds clean

# A Python of the right version, whichever name this machine gives it. Override: make PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
# Processes that share the tests. 0 is one, for a machine that is busy: some tests need a core.
WORKERS ?= 2

help:
	@echo 'make train   install, then train on MT10 (add options: make train ARGS="--seed 2")'
	@echo 'make test    install, then run the tests'
	@echo 'make check   what CI runs: lint, types, tests'
	@echo 'make setup   only install, into .venv/'
	@echo 'make bounds  run the tests with the oldest and the newest dependencies'

setup: .venv/.installed

# Torch goes first and pinned: another requirement would otherwise pull its newest build.
.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'mtrl needs Python 3.11, 3.12 or 3.13, and none was found: install one, or name it with `make setup PYTHON=/path/to/python`' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

train: setup
	$(BIN)/python scripts/train_mt10.py $(ARGS)

test: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

check: lint types test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

bounds: setup
	$(BIN)/python benchmarks/dependency_bounds.py lowest newest --keep-torch

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
