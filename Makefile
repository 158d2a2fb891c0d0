# Two commands matter: `make demo` and `make test`. Everything they need lands in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-airflow chaos check lint format types build check-install clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	# uv is much faster; pip is the way out where uv cannot see the index that pip is configured for.
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# Unit tests, the client and the operators against the local Qarnot, the example DAGs through dag.test().
test: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not airflow_stack' --durations=8

check: lint types build

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

build: $(STAMP)
	rm -rf dist
	$(BIN)/uv build --quiet --out-dir dist || $(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/python tools/check_wheel.py

# The wheel in Airflow 3.1 and 3.3 environments as they were on release day.
check-install: build
	$(BIN)/python tools/check_install.py

clean:
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .demo

# A local Qarnot, a real Airflow, one warm pool. `make demo DEMO=--stay` leaves Airflow up for a look at its UI.
demo: setup
	$(BIN)/python -m tools.demo $(DEMO)
