# Two commands set everything up on a fresh machine with python3 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.PHONY: demo test test-oldest lint types docs package bench examples clean

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

# The oldest versions of the dependencies that pyproject.toml allows, in an environment of their own, without frameworks.
OLDEST := $(VENV)-oldest/bin/python

test-oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(OLDEST) -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt \
		'.[distributed,safetensors,hdf5,msgpack]' pytest pytest-benchmark hypothesis
	$(OLDEST) -m pytest -q -o filterwarnings= tests/test_import.py tests/data/store/test_store.py \
		tests/estimators/two_time/test_two_time.py

lint: $(VENV)/.installed-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m codespell_lib

types: $(VENV)/.installed-lint
	$(PY) -m mypy

docs: $(VENV)/.installed-docs
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

# Wheel and sdist, and the wheel in an empty environment: it imports, its command answers, an analysis runs.
package: $(VENV)/.installed-package
	rm -rf dist $(VENV)-wheel
	$(PY) -m build --outdir dist .
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && ../$(VENV)-wheel/bin/trajstats --help && ../$(VENV)-wheel/bin/python -W error ../tests/packaging/ten_lines.py

bench: $(VENV)/.installed-bench
	$(PY) -m pytest tests/benchmarks --benchmark-only --benchmark-columns=min,median,rounds

# Every example at its short setting, WORKERS at a time, one thread each; make fails if one of them does.
EXAMPLES := $(filter-out examples/_%,$(wildcard examples/*.py))

examples: $(VENV)/.installed-all
	@mkdir -p runs
	@export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1; \
	printf '%s\n' $(EXAMPLES) | xargs -P $(WORKERS) -I{} sh -c \
		'log=runs/$$(basename {} .py).log; $(PY) {} --quick > $$log 2>&1 \
		&& echo "passed {}" || { cat $$log; echo "FAILED {}"; exit 1; }'

clean:
	rm -rf $(VENV) $(VENV)-wheel $(VENV)-oldest dist docs/_build .pytest_cache .mypy_cache .ruff_cache
