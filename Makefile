# Every target sets itself up. The first one creates .venv, installs the locked packages and then the project; later ones
# repeat that only when pyproject.toml or requirements.lock has changed.

.DEFAULT_GOAL := help
.PHONY: help setup demo study test test-slow bench lint lock clean
.DELETE_ON_ERROR:

# The first of these that TensorFlow supports and that can make a virtual environment; `make PYTHON=...` chooses another.
CHECK = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c '$(CHECK)' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin/python
PIP := $(BIN) -m pip --quiet --disable-pip-version-check
STAMP := .venv/.installed
ARGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN) || test -n "$(PYTHON)" || { \
	  echo "Expected Python 3.11 to 3.13 with venv. Found none. Install one, or name it: make PYTHON=/path/to/python3"; exit 2; }
	@$(BIN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo "installing the locked packages into .venv (TensorFlow is large: a few minutes the first time)"
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

setup: $(STAMP) ## create .venv and install the locked packages and the project
	@echo "ready: . .venv/bin/activate"

PRETRAINED = --budget demo --root demo --backbone efficientnet_lite0 --weights imagenet
demo: export CIFAR_KERAS_CACHE = $(CURDIR)/demo/cache
demo: $(STAMP) ## run all four experiments on the embedded data, two also pretrained, and write the report; offline, minutes
	$(BIN) -m cifar_keras study --budget demo --root demo
	$(BIN) experiments/exp1_frozen.py $(PRETRAINED)
	$(BIN) experiments/exp2_augment_224.py $(PRETRAINED)
	$(BIN) -m cifar_keras report --root demo
	@echo
	@echo "report     demo/results/report/index.html (open it in a browser)"
	@echo "table      demo/results/results.csv (again: $(BIN) -m cifar_keras collate --root demo)"
	@echo "artifacts  demo/model_cp/ (.keras), demo/Models/ (.h5, architectures, histories)"
	@echo "pictures   demo/results/figures/"

study: $(STAMP) ## run the study; options as in: make study ARGS="--budget quick --data-dir DIR"
	$(BIN) -m cifar_keras study $(ARGS)

test: $(STAMP) ## run every test except the slow ones, in two processes
	$(BIN) -m pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --durations 10 $(ARGS)

test-slow: $(STAMP) ## run the slow tests only
	$(BIN) -m pytest -q -m slow $(ARGS)

bench: $(STAMP) ## run benchmarks/ and rewrite benchmarks/RESULTS.md; in full (long): make bench ARGS=--full
	$(BIN) benchmarks/collect.py $(ARGS)

lint: $(STAMP) ## check style, formatting and types, as CI does
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy

# The same versions for every system and Python that the project supports. Pins that still fit stay.
lock: $(STAMP) ## rewrite requirements.lock from pyproject.toml; newer versions: make lock ARGS=--upgrade
	$(PIP) install uv
	$(BIN) -m uv --quiet pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --extra dev --extra tensorboard -o requirements.lock pyproject.toml $(ARGS)

clean: ## remove caches and the demo's output; .venv, models and results stay
	rm -rf demo .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
