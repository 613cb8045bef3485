# The same commands locally and in CI. Needs Python 3.11 or newer, make, and a package index; nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements.lock
EMULATOR := tests/bigquery/emulator

.DEFAULT_GOAL := help
.PHONY: help venv demo bigquery-emulator test test-postgres test-bigquery check format bench bench-peers lock clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv:  ## Make the virtual environment with the locked versions; does nothing when it is up to date
	@wanted="$$(cat pyproject.toml $(LOCK) | cksum) $(CURDIR)"; \
	if [ "$$(cat $(STAMP) 2>/dev/null)" != "$$wanted" ]; then \
		sh scripts/install.sh "$(PYTHON)" $(VENV) $(LOCK) && printf '%s\n' "$$wanted" > $(STAMP); \
	fi

demo: venv  ## A PostgreSQL with live traffic, replicated into DuckDB by Dagster (UI=1 leaves Dagster's pages open)
	@$(BIN)/etl-dagster demo $(if $(filter-out 0,$(UI)),--ui) $(ARGS)

bigquery-emulator: venv  ## Install the BigQuery emulator that tests run against; does nothing when it is up to date
	@$(BIN)/python -m tests.bigquery.emulator

test: bigquery-emulator  ## Run the tests (ARGS="-k copy" for some of them)
	@$(BIN)/python -m pytest $(ARGS)

BINDIR ?= $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))

test-postgres: venv  ## Run the tests of the source and the engine against another PostgreSQL (BINDIR=its bin folder)
	@test -x "$(BINDIR)/postgres" || { echo "no PostgreSQL in '$(BINDIR)': make test-postgres BINDIR=/its/bin"; exit 2; }
	@ETL_TEST_PG_BINDIR="$(BINDIR)" ETL_TEST_KILLS=$${ETL_TEST_KILLS:-5} $(BIN)/python -m pytest \
		tests/postgres tests/decoding tests/types tests/store tests/replication \
		--ignore tests/replication/test_many_tables.py --ignore tests/replication/test_wide_and_large.py \
		--ignore tests/replication/test_slices.py --ignore tests/replication/test_pace.py $(ARGS)

test-bigquery: venv  ## Run the tests against Google's BigQuery (ETL_TEST_BIGQUERY_PROJECT=a project that pays for it)
	@test -n "$(ETL_TEST_BIGQUERY_PROJECT)" || { echo "no project: make test-bigquery ETL_TEST_BIGQUERY_PROJECT=it"; exit 2; }
	@ETL_TEST_BIGQUERY_PROJECT="$(ETL_TEST_BIGQUERY_PROJECT)" $(BIN)/python -m pytest tests/bigquery/test_real.py $(ARGS)

check: venv  ## Lint, format, types and import contracts
	@failed=0; for step in "ruff check ." "ruff format --check ." "mypy" "lint-imports --no-logo"; do \
		echo "== $$step"; $(BIN)/$$step || failed=1; \
	done; exit $$failed

format: venv  ## Format the code and fix what can be fixed by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: venv  ## Measure against the neighbours (JSON=1 prints one JSON object as the last line)
	@$(BIN)/python -m benchmarks $(if $(filter-out 0,$(JSON)),--json) $(ARGS)

bench-peers: venv  ## Install the optional contenders of the benchmark in a virtual environment of their own
	@$(BIN)/uv venv --quiet --allow-existing .venv-peers
	@$(BIN)/uv pip install --quiet --python .venv-peers/bin/python -r benchmarks/peers.txt

lock: venv  ## Resolve the newest allowed versions into the lock file
	@$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --generate-hashes \
		--extra dev --extra bench --no-emit-package etl-dagster --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links \
		--output-file $(LOCK) pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links \
		--output-file $(EMULATOR)/requirements.lock $(EMULATOR)/requirements.in

clean:  ## Remove the virtual environment, caches and the demo's data
	rm -rf $(VENV) .venv-peers .venv-bigquery-emulator* .demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
