# The two commands that matter: make demo, make test. See README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Editable, with the tested versions; repeated only when what is asked for changes.
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.installed-test

.PHONY: help setup demo test check matrix bench data train clean

help:
	@echo "make demo     install, build a corpus, train a small model, fill masks, write a report"
	@echo "make test     install and run the test suite"
	@echo "make check    lint, types, shape of the code"
	@echo "make data     TRAIN=file VALID=file TOKENIZER=file DATA=folder: encode and binarize text"
	@echo "make train    DATA=folder TOKENIZER=file RUN=folder: train the demo's model on it"
	@echo "make matrix   the long tests: every combination of knobs, the oldest supported torch"
	@echo "make bench    measure speed; results go to benchmarks/results"

$(INSTALLED): pyproject.toml constraints.txt fairseq/version.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[plot]'
	@touch $@

$(TESTABLE): $(INSTALLED)
	$(PIP) install -c constraints.txt -e '.[plot,test,dev]'
	@touch $@

setup: $(TESTABLE)

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py demo

test: $(TESTABLE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

check: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

matrix: $(TESTABLE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "matrix" tests

bench: $(TESTABLE)
	$(BIN)/python benchmarks/run.py

TOKENIZER ?= tokenizer.json
DATA ?= data-bin
RUN ?= runs/mine
data: $(INSTALLED)
	$(BIN)/fairseq-bpe encode --bpe byte_level --tokenizer-file $(TOKENIZER) --keep-empty \
		--inputs $(TRAIN) $(VALID) --outputs $(TRAIN).bpe $(VALID).bpe
	$(BIN)/fairseq-preprocess --only-source --trainpref $(TRAIN).bpe --validpref $(VALID).bpe \
		--destdir $(DATA) --workers 2

clean:
	rm -rf demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis
