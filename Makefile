# Every target sets itself up: the first one makes .venv and installs the project; later ones only when pyproject.toml changed.

.DEFAULT_GOAL := help
.PHONY: help setup demo study test test-slow bench lint clean
.DELETE_ON_ERROR:

# The first of these that TensorFlow supports and that can make a virtual environment; `make PYTHON=...` chooses another.
CHECK = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c '$(CHECK)' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin/python
STAMP := .venv/.installed
ARGS ?=

help: ## what stands here
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

$(STAMP): requirements.txt pyproject.toml
	@test -x $(BIN) || test -n "$(PYTHON)" || { \
	  echo "Expected Python 3.11 to 3.13 with venv. Found none. Install one, or name it: make PYTHON=/path/to/python3"; exit 2; }
	@$(BIN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo "installing the project into .venv (TensorFlow is large: a few minutes the first time)"
	$(BIN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# What tests and linting need besides.
DEV := .venv/.dev
$(DEV): $(STAMP)
	$(BIN) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(STAMP) ## a virtual environment in .venv with all that is needed
	@echo "ready: . .venv/bin/activate"

demo: export CIFAR_KERAS_CACHE = $(CURDIR)/demo/cache
demo: $(STAMP) ## all four experiments on the embedded data and their report, offline, in minutes
	$(BIN) -m cifar_keras study --budget demo --root demo
	$(BIN) -m cifar_keras report --root demo
	@echo
	@echo "report     demo/results/report/index.html (open it in a browser)"
	@echo "table      demo/results/results.csv (again: $(BIN) -m cifar_keras collate --root demo)"
	@echo "artifacts  demo/model_cp/ (.keras), demo/Models/ (.h5, architectures, histories)"
	@echo "pictures   demo/results/figures/"

study: $(STAMP) ## the study itself; options as in: make study ARGS="--budget quick --data-dir DIR"
	$(BIN) -m cifar_keras study $(ARGS)

test: $(DEV) ## every test but the slow ones, in two processes
	$(BIN) -m pytest -q -m "not slow" -n 2 --dist loadfile --durations 10 $(ARGS)

test-slow: $(DEV) ## the slow tests alone
	$(BIN) -m pytest -q -m slow $(ARGS)

bench: $(STAMP) ## the measurements in benchmarks/, into benchmarks/RESULTS.md; long: make bench ARGS=--full
	$(BIN) benchmarks/collect.py $(ARGS)

lint: $(DEV) ## style and formatting, as in CI
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .

clean: ## caches and the demo's output; .venv, models and results stay
	rm -rf demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
