# Two commands are enough on a fresh machine: `make demo` and `make test`.
# Both make a virtual environment in .venv and install into it with the versions of constraints.txt.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out/demo

# uv does not read pip's variable for extra wheel folders; hand it over (empty is fine).
INSTALL = UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt

.PHONY: help demo test test-all test-cpus check format bench commands notebooks docs clean

help:
	@echo "make demo    unlearn Harry Potter from the bundled model, sweep it, draw the figure, ask whether it has forgotten (out/demo/)"
	@echo "make test    run every test"
	@echo "make test-all   those too that take minutes (marked long)"
	@echo "make test-cpus  exactness and bounds as other processors round: vector widths, thread counts"
	@echo "make check   lint, formatting and types"
	@echo "make bench   benchmarks (benchmarks/)"
	@echo "make commands   write what every command's --help says into docs/commands.md"
	@echo "make notebooks   run examples/ and write their pages with what they put out (docs/examples/)"
	@echo "make docs    build the documentation site (site/)"

$(BIN)/uv:
	@echo "setting up $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv

$(VENV)/.installed-demo: $(BIN)/uv pyproject.toml constraints.txt
	@$(INSTALL) -e ".[unlearn,plot]"
	@touch $@

$(VENV)/.installed-test: $(BIN)/uv pyproject.toml constraints.txt
	@$(INSTALL) -e ".[test]"
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-docs: $(BIN)/uv pyproject.toml constraints.txt
	@$(INSTALL) -e ".[docs,unlearn,plot]"
	@touch $@

demo: $(VENV)/.installed-demo
	@$(BIN)/krs demo -o $(OUT)

# A worker a core, whole files at a time: what a file's tests share is made once.
WORKERS = -n logical --maxprocesses 6 --dist loadfile

test: $(VENV)/.installed-test
	@$(BIN)/python -m pytest $(WORKERS)

test-all: $(VENV)/.installed-test
	@$(BIN)/python -m pytest -m "" $(WORKERS)

test-cpus: $(VENV)/.installed-test
	@PYTHON=$(BIN)/python tests/other_cpus.sh

check: $(VENV)/.installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The libraries that krs is compared with bring a hundred packages: they get an environment of their own.
bench:
	@$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.installed-bench
	@.venv-bench/bin/python benchmarks/sweep.py

$(VENV)/.installed-bench: $(BIN)/uv pyproject.toml constraints.txt
	@$(INSTALL) -e ".[bench]"
	@touch $@

commands: $(VENV)/.installed-test
	@$(BIN)/python docs/commands.py

notebooks: $(VENV)/.installed-test
	@$(BIN)/python docs/notebooks.py

docs: $(VENV)/.installed-docs
	@$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-bench site out build *.egg-info .pytest_cache .ruff_cache .mypy_cache
