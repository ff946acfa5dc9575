# The few commands that Shoal lives by. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test tests test-thorough test-cluster lint types floors bench clean

demo: .venv/ready            ## the main job, end to end, in minutes
	$(BIN)/shoal demo

test: .venv/ready-dev        ## everything that must pass, side by side: types alone would leave a core idle for a minute
	$(MAKE) --no-print-directory -j4 lint types floors tests

tests: .venv/ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not thorough'

test-thorough: .venv/ready-dev ## the tests with all sizes, fuzzing and browsers, which take some minutes more
	$(BIN)/pip install --quiet --editable '.[thorough]'
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-cluster: .venv/ready-dev ## parameter servers on a real Ray, which `test` leaves out where Ray is missing
	$(BIN)/pip install --quiet --editable '.[cluster]'
	$(BIN)/python -m pytest tests/train/test_cluster.py tests/bench/test_served.py

lint: .venv/ready-dev
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench

types: .venv/ready-dev
	$(BIN)/mypy

floors: .venv/ready-dev
	$(BIN)/lint-imports --no-cache

bench: .venv/ready-dev       ## Shoal and its peers on this machine, in turn (an hour)
	bench/setup_peers.sh
	$(BIN)/python bench/train.py
	$(BIN)/python bench/prepare.py --megabytes 130
	$(BIN)/python bench/masked.py

clean:                       ## remove environments and caches, keep data/ and runs/
	rm -rf .venv .bench build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# torch comes first and by its version alone: a looser requirement would fetch gigabytes of another build
.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Shoal needs Python 3.11 or newer; choose one: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet 'torch==2.13.*'
	$(BIN)/pip install --quiet --editable '.[serve]'
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet --use-pep517 --editable '.[dev]'  # seqeval comes as source, which pip 23.0 (Debian 12) can't build the old way
	touch $@
