# make setup | demo | test | soak | check
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test soak check clean
setup: .venv/.done

# PIP_NO_WARN_CONFLICTS, --no-warn-*: what else is on the machine is no matter of ours; errors are shown.
PIP := $(BIN)/python -W ignore -m pip install --quiet --quiet --no-compile --disable-pip-version-check \
	--no-warn-conflicts --no-warn-script-location -c constraints.txt

.venv/.done: pyproject.toml constraints.txt
	@echo "setup 1/4  a Python environment in .venv, with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@echo "setup 2/4  PyTorch, the largest package (several GB with its CUDA libraries): minutes"
	@$(PIP) torch
	@echo "setup 3/4  this project and what else it needs ($$(grep -c == constraints.txt) packages in all)"
	@$(PIP) -e '.[dev]'
	@echo "setup 4/4  compiling what was installed, on all cores"
	@# Some packages carry templates that are no Python, hence the `|| true`.
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $@
	@echo "setup      done: $$(du -sh .venv | cut -f1) in .venv"

demo: setup
	$(BIN)/python -m demo

NODES = tests/faults/test_nodes.py

# Two at a time without Ray; with it one after the other, as a job takes the cores that there are. Clusters of several
# nodes have a process of their own: where they end, one that their process had joined before can end with them.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not ray and not soak'
	$(BIN)/python -m pytest -m 'ray and not soak' --ignore $(NODES)
	$(BIN)/python -m pytest -m 'ray and not soak' $(NODES)

soak: setup
	$(BIN)/python -m pytest tests/faults tests/sweep tests/demo tests/sources tests/llava_batch tests/test_job.py tests/test_web_job.py tests/engine/test_stops.py tests/execution/test_cluster.py tests/execution/test_container.py tests/execution/test_launcher.py tests/execution/test_slurm.py tests/execution/test_scrape.py tests/test_ways_job.py tests/storage tests/test_placement_benchmark.py \
		-m 'ray or soak' -v --durations=0 --ignore $(NODES)
	$(BIN)/python -m pytest $(NODES) -m 'ray or soak' -v --durations=0

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not ray and not gpu and not soak'

clean:
	rm -rf .venv out
