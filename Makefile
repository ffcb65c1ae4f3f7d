# make setup | demo | test | soak | check
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test soak check clean
setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# On all cores, as pip would on one; some packages carry templates that are no Python, hence the `|| true`.
	$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	touch $@

demo: setup
	$(BIN)/python -m demo

test: setup
	$(BIN)/python -m pytest

soak: setup
	$(BIN)/python -m pytest tests/faults tests/sweep tests/demo tests/engine/test_stops.py tests/test_cluster.py tests/test_hub.py tests/test_placement_benchmark.py \
		-m 'ray or soak' -v --durations=0

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not ray and not gpu and not soak'

clean:
	rm -rf .venv out
