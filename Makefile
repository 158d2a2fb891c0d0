# Two commands matter: `make demo` and `make test`. Everything they need lands in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SELENIUM := selenium==4.51.0
# Of the archives in dist/, so that a commit gives the same bytes on every day. Not exported, because Python would check
# the hash of each module that it imports.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1767225600)
POSTGRES_DRIVERS := psycopg2-binary==2.9.13 asyncpg==0.32.0

# Hundreds of interpreters start here, each of which would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test coverage test-airflow test-ui pools-page chromium distributed soak matrix next chaos readings bench check lint format types build reproducible docs docs-releases release-check upload check-install test-group-3.1 clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	# uv is much faster; pip is the way out where uv cannot see the index that pip is configured for.
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# Unit tests, the client and the operators against the local Qarnot, the example DAGs through dag.test(). Most of the
# time they wait for processes, so there are more of them at work than cores; each file keeps to one. Each process
# imports what it collects, so folders that have commands of their own are left out.
test: $(STAMP)
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder -m 'not airflow_stack and not airflow_ui and not airflow_distributed' --ignore=tests/stack --ignore=tests/ui --ignore=tests/distributed --durations=25

# What only a whole Airflow shows: kills, clears, timeouts, lost and frozen components. PostgreSQL, as on SQLite
# Airflow itself loses deferred tasks; the server is started from its programs, no system service is needed.
# `make test-airflow AIRFLOW=3.1.8` runs the files of STACK, those of QarnotExecutor, with an older Airflow, as of its
# release day, and the built wheel.
STACK ?= tests/stack/test_executor.py tests/stack/test_executor_node.py
AIRFLOW ?=
test-airflow: setup $(if $(AIRFLOW),build)
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null \
	  || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends postgresql; } \
	  || { echo 'PostgreSQL is missing; as root: apt-get install postgresql' >&2; exit 1; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt $(POSTGRES_DRIVERS) \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt $(POSTGRES_DRIVERS)
ifeq ($(AIRFLOW),)
	$(BIN)/python -m pytest -q -m airflow_stack tests/stack -o faulthandler_timeout=600
	$(BIN)/python -m pytest -q -m airflow_stack tests/dags/test_airflow_stack.py tests/dags/test_event_runs.py
else
	$(BIN)/python -m tools.old_ui $(AIRFLOW) --mark airflow_stack $(STACK)
endif

# The UI as a person meets it: connection form, Test button, Pools page, links, in headless Chromium.
# QARNOT_UI_SHOTS=folder keeps screenshots. With PostgreSQL where `make test-airflow` has installed it.
# `make test-ui AIRFLOW=3.1.8` takes an older Airflow, as of its release day, and the built wheel.
UI ?= tests/ui
test-ui: chromium $(if $(AIRFLOW),build)
ifeq ($(AIRFLOW),)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m airflow_ui $(UI) tests/local/test_senders.py tests/local/test_page.py
else
	$(BIN)/python -m tools.old_ui $(AIRFLOW) $(UI)
endif

# The pictures of docs/pools-page.md from a real run of about 10 minutes, and figures of the page's promises.
# `make pools-page PAGE='--views shots --large'` keeps all views, and adds 500 pools with 10,000 Qarnot tasks.
PAGE ?=
pools-page: chromium
	$(BIN)/python -m tools.pools_page $(PAGE)

chromium: setup
	@{ command -v chromium && command -v chromedriver; } >/dev/null \
	  || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium chromium-driver; } \
	  || { echo 'Chromium is missing; as root: apt-get install chromium chromium-driver' >&2; exit 1; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt $(SELENIUM) \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt $(SELENIUM)

# Several of everything, as in production: Celery workers, triggerers, schedulers, PostgreSQL and Redis, which are
# killed and taken away. The option `--distributed-report docs/contributing/evidence/distributed.md` in DISTRIBUTED
# writes the results into that page.
distributed: setup
	@{ ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; } && command -v redis-server >/dev/null \
	  || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends postgresql redis-server; } \
	  || { echo 'PostgreSQL or Redis is missing; as root: apt-get install postgresql redis-server' >&2; exit 1; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[distributed]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[distributed]'
	$(BIN)/python -m pytest -q -m airflow_distributed tests/distributed $(DISTRIBUTED)

# Memory and open files over hours. Needs what `make distributed` has installed.
HOURS ?= 2
soak: setup
	$(BIN)/python -m tools.soak --hours $(HOURS) $(SOAK)

# Every supported Airflow on every supported Python that is there: docs/contributing/evidence/versions.md.
matrix: build
	$(BIN)/python -m tools.matrix $(MATRIX)

# Branch coverage by the tests that take seconds. It is printed, and no gate. It nearly doubles the CPU time of a test.
coverage: $(STAMP)
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --cov --cov-report=term:skip-covered \
	  tests/api tests/costs tests/hooks tests/logs tests/maintenance tests/ownership tests/parameters tests/plugins \
	  tests/task_groups/test_wiring.py tests/triggers tests/waiting tests/operators/test_pool_operators.py \
	  tests/operators/test_sensors.py tests/operators/test_task_operators.py tests/test_provider.py \
	  --ignore=tests/plugins/test_run_share.py --ignore=tests/triggers/test_poller_hostile.py

check: lint types reproducible

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy --strict example_dags tests/decorators/typed.py

build: $(STAMP)
	rm -rf dist
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(BIN)/uv build --quiet --build-constraints constraints.txt --out-dir dist \
	  || SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/python tools/check_wheel.py

# The sdist built once more, elsewhere and under other conditions: the same bytes.
reproducible: build
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(BIN)/python -m tools.reproducible

# What a person must still do before an upload. Prints nothing, and succeeds, if that is nothing.
release-check: $(STAMP)
	@$(BIN)/python -m tools.release_check

# Upload dist/ to the index that twine is configured for. CONTRIBUTING.md has the steps before it.
upload: release-check
	$(BIN)/twine upload dist/*.whl dist/*.tar.gz

# The pages of docs/ as a site: `make docs` builds build/site/dev, and `make docs VERSION=0.1.0` a release beside it.
# Each page switches between the versions that are there.
VERSION ?= dev
docs: $(STAMP)
	$(BIN)/mkdocs build --quiet --site-dir build/site/$(VERSION)
	@echo 'The site is in build/site. To search it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site'

# The site with the pages of each release that has a tag, for the public host.
docs-releases: $(STAMP)
	$(BIN)/python -m tools.docs_releases

# The newest Airflow on the index, pre-releases included, with the newest of all that it needs. If it is a supported one,
# that is said, and it runs with those.
next: build
	$(BIN)/python -m tools.next_airflow $(NEXT)

# The wheel in Airflow 3.1, 3.2 and 3.3 environments as they were on release day, and the README followed there.
check-install: build
	$(BIN)/python -m tools.check_install

# The edges of QarnotPoolGroup (among the rest) in Airflow 3.1.
test-group-3.1: build
	$(BIN)/python -m tools.check_install --quick --release 3.1.8

clean:
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .demo

# A local Qarnot, a real Airflow, one warm pool. `make demo DEMO=--stay` leaves Airflow up for a look at its UI.
demo: setup
	$(BIN)/python -m tools.demo $(DEMO)

# Processes killed at random moments, and an account of what was done twice, left on or lost. WORLD=all adds quotas,
# capped and late searches, wrong clocks, stray errors, deeds of others, frozen processes and pools without nodes.
SEED ?= 7
KILLS ?= 200
WORLD ?=
chaos: $(STAMP)
	$(BIN)/python -m tools.chaos --seed $(SEED) --kills $(KILLS) --world '$(WORLD)'

# The core suites under sets of other readings of the service (tests/readings.py), about 6 minutes each. As with other
# commands, READINGS=strict chooses one; here it may be several: READINGS=late,random-7 SUITES=chaos.
READINGS ?=
SUITES ?=
readings: $(STAMP)
	$(BIN)/python -m tools.readings --sets '$(READINGS)' --suites '$(SUITES)'

# Against named peers, in about an hour; rewrites docs/contributing/evidence/benchmarks.md.
# `make bench BENCH=fan_out` runs one program.
BENCH ?=
bench: setup
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[bench]' $(POSTGRES_DRIVERS) \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]' $(POSTGRES_DRIVERS)
	$(BIN)/python -m benchmarks $(BENCH)
