# Two commands do all the set-up on a machine with Python 3.11 or newer: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt

.PHONY: demo test check clean

demo: .venv/.for-demo
	$(BIN)/lorkd demo

test: .venv/.for-tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/.for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-3.10 build dist

# The stamps keep a second `make` from installing again; they depend on what was asked to install.
.venv/.for-demo: .venv/.created pyproject.toml constraints.txt
	$(INSTALL) --editable '.[train,onnx,report]'
	touch $@

.venv/.for-tests: .venv/.created pyproject.toml constraints.txt
	$(INSTALL) --editable '.[all,dev]'
	touch $@

.venv/.created:
	$(PYTHON) -m venv .venv
	touch $@
