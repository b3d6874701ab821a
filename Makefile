# `make demo` and `make test` need Python 3.11+ with pip, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs
QUICKSTART := autoencoder vae gan

.PHONY: setup demo test lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.txt pyproject.toml
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

lint: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
