# `make demo` and `make test` need Python 3.11+ with pip, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs
# Parts of the names of the benchmarks that `make bench` runs; empty for all.
BENCH ?=
QUICKSTART := autoencoder vae gan

.PHONY: setup demo test test-models soak lint bench keys campaign clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.txt pyproject.toml setup.py src/gentickets/_kernels.c src/gentickets/_kernels_body.h
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

# The main job on real handwritten digits: an autoencoder, a VAE and a GAN; some six minutes on two cores.
demo: setup
	@for recipe in $(QUICKSTART); do \
	    echo "== $$recipe"; \
	    $(BIN)/gentickets find recipes/quickstart/$$recipe.yaml --runs $(RUNS) || exit $$?; \
	done
	@echo "== all three"
	@$(BIN)/gentickets report $(foreach r,$(QUICKSTART),$(RUNS)/quickstart-$(r)) --out $(RUNS)/quickstart.html

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# What only the networks, adapters and training loops of other packages can show; all offline, with random weights.
test-models: $(VENV)/.models
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m models

$(VENV)/.models: $(VENV)/.ready requirements-models.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-models.txt
	@touch $@

# 200 runs that are killed, signalled or damaged at random, and 200 on which several commands work, each compared with an
# undisturbed one; signals at any moment of a start; preemptions by a real SLURM and lost nodes of Ray, as far as they are
# here (as root on Linux; `python -m tests.slurm_at_home` fetches SLURM, on Debian). Two hours.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m soak

lint: setup
	$(BIN)/ruff check src tests benchmarks campaign
	$(BIN)/ruff format --check src tests benchmarks campaign
	$(BIN)/mypy

# Speed beside what gentickets replaces, some twenty minutes; a part of it: make bench BENCH="masked-step thresholds"
bench: setup
	$(BIN)/python -m benchmarks $(BENCH) --out $(RUNS)/bench.json

# The page of all keys of a recipe, written from the types that recipes are checked by.
keys: setup
	$(BIN)/python -m gentickets.lab.recipe.keys > docs/keys.md

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The paper's claims at the scale of nights (campaign/list.yaml), at the lowest priority; resumes after any kill. From a checkout that
# nobody works in: make campaign RUNS=/elsewhere/runs SOURCES="--source mnist=train.parquet --source cifar10=train.parquet"
SOURCES ?=
campaign: setup
	$(BIN)/python -m campaign run --runs $(RUNS) $(SOURCES)
