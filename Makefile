# Two commands set everything up on a fresh machine with python3 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.PHONY: demo test lint types docs bench examples clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing trajstats[$*] into $(VENV) (once; a few minutes)"
	$(PIP) -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo
	$(PY) -m trajstats.cli demo

test: $(VENV)/.installed-test
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.installed-lint
	$(PY) -m mypy

docs: $(VENV)/.installed-docs
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.installed-bench
	$(PY) -m pytest tests/benchmarks --benchmark-only --benchmark-columns=min,median,rounds

examples: $(VENV)/.installed-demo
	$(PY) examples/quickstart.py

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache
