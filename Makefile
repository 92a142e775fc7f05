# Every target bootstraps its own .venv on a bare Debian with python3 >= 3.11 (packages python3, python3-venv).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install demo test lint types bench gpu vllm-cpu clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "evalengine needs Python >= 3.11: set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/evalengine demo

test: install
	$(BIN)/python -m pytest

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

clean:
	rm -rf $(VENV) .venv-vllm .types build dist *.egg-info
