# Two commands do all the set-up on a machine with Python 3.11 or newer: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first imported, most never are. A container that forbids writing
# what was compiled would have each of hundreds of processes compile torch again.
export PYTHONDONTWRITEBYTECODE =
INSTALL := $(BIN)/python -m pip install --no-compile --constraint constraints.txt

# A file's tests share what it trains; files that take long begin first, as tests/conftest.py says.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick check docs clean

demo: .venv/.for-demo
	$(BIN)/lorkd demo

# Each of the two processes has a core: more threads of torch and NumPy would wait for each other.
test quick: export OMP_NUM_THREADS ?= 1

test: .venv/.for-tests
	$(PYTEST)

quick: .venv/.for-tests
	$(PYTEST) -m 'not slow and not thorough'

check: .venv/.for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strict: a link to a page or a heading that isn't there ends it.
docs: .venv/.for-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open site/index.html"

clean:
	rm -rf .venv .venv-3.10 .venv-servers build dist site

# The stamps keep a second `make` from installing again; they depend on what was asked to install.
.venv/.for-demo: .venv/.created pyproject.toml constraints.txt
	$(INSTALL) --editable '.[train,onnx,report]'
	touch $@

.venv/.for-tests: .venv/.created pyproject.toml constraints.txt
	$(INSTALL) --editable '.[all,dev]'
	touch $@

.venv/.for-docs: .venv/.created pyproject.toml constraints.txt
	$(INSTALL) --editable '.[docs]'
	touch $@

.venv/.created:
	$(PYTHON) -m venv .venv
	touch $@
