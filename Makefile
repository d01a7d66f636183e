# Everything that rdmakit needs, it installs into .venv; what must be there before, `check` names.
# Re-runs are fast: stamps in .venv say what is installed and built.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check
BUILD_REQUIRES = $(shell sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ,)

SOURCES := setup.py pyproject.toml $(wildcard rdmakit/emu/*.pyx rdmakit/emu/*.pxi rdmakit/emu/*.pxd rdmakit/emu/*/*.cpp \
           rdmakit/verbs/*.pyx rdmakit/verbs/*.pxi rdmakit/verbs/native/* \
           rdmakit/emu/*/*.hpp rdmakit/emu/compile.py cuda/rdmakit/*.cuh cuda/kernels/*.cu)

.PHONY: help demo test bench explore lab lab-setup notebooks docs lint ruff cython-lint mypy stubtest clean distclean check
.DEFAULT_GOAL := help

help:
	@echo "make demo       install into .venv, build, run MoE dispatch/combine on the emulated NICs, check it"
	@echo "make test       everything but the slow slice"
	@echo "make explore    the slow, deep slice of the tests"
	@echo "make lab        the tests of real verbs, between two hosts of two soft-RoCE ports in a virtual machine"
	@echo "make lab-setup  download that machine's kernel, once"
	@echo "make bench      figures of the emulator on this machine"
	@echo "make notebooks  build the notebooks and open JupyterLab"
	@echo "make docs       these pages as a site, in build/site"
	@echo "make lint       ruff, cython-lint, mypy, stubtest"
	@echo "make clean      remove what was built (distclean: .venv too)"
	@echo "PYTHON=python3.12 make …  chooses the interpreter; it must be 3.10 or newer"

demo: $(VENV)/.demo
	@$(PY) -m rdmakit demo

test: $(VENV)/.test
	$(PY) -m pytest -n auto

explore: $(VENV)/.test
	$(PY) -m pytest -m explore

LAB_SECONDS ?= 900
# Both suites in one process: an emulated processor takes a minute to start pytest.
lab: export RDMAKIT_DEVICES := h0r0
lab: export RDMAKIT_LAB_RECORD := /out/record.json
lab: export RDMAKIT_LAB_COMMIT = $(shell git describe --always --dirty=+changes 2>/dev/null)
lab: export PYTEST_DISABLE_PLUGIN_AUTOLOAD := 1
lab: $(VENV)/.test
	$(PY) -m rdmakit lab --host 0 --seconds $(LAB_SECONDS) --out build/lab -- \
	    $(PY) -m pytest -o addopts=-ra -p pytest_timeout -p no:cacheprovider --durations=5 tests/lab tests/rdma

lab-setup: $(VENV)/.demo
	@$(PY) -m rdmakit lab --setup

bench: $(VENV)/.demo
	@$(PY) -m rdmakit bench emu

notebooks: $(VENV)/.test
	$(PY) -m rdmakit.course.build
	$(PY) -m jupyter lab notebooks

docs: $(VENV)/.demo
	$(PY) -m pip install -q --disable-pip-version-check -e '.[docs]'
	$(PY) -m mkdocs build

lint: ruff cython-lint mypy stubtest

ruff: $(VENV)/.test
	$(PY) -m ruff check --output-format concise rdmakit tests tutorials notebooks setup.py

cython-lint: $(VENV)/.test
	PATH="$(VENV)/bin:$$PATH" cython-lint rdmakit

mypy: $(VENV)/.test
	$(PY) -m mypy

stubtest: $(VENV)/.test
	$(PY) -m mypy.stubtest rdmakit.emu._world rdmakit.verbs._verbs \
	    --mypy-config-file pyproject.toml --allowlist .ci/stubtest-allowlist --ignore-unused-allowlist

clean:
	rm -rf build dist *.egg-info rdmakit/emu/stock rdmakit/emu/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -f $(VENV)/.built $(VENV)/.demo $(VENV)/.test
	find rdmakit tests tutorials -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# ---- stamps ------------------------------------------------------------------------------------------------------
# .python: the environment with what a build needs. .built: the extension and the stock kernels, in place.
# .demo: rdmakit itself, editable. .test: that with the tools of [dev,notebooks].
$(VENV)/.python: pyproject.toml
	@sh -c "$$CHECK"
	@test -x $(PY) || { echo "== making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "== installing what the build needs"
	@$(PIP) install $(BUILD_REQUIRES)
	@touch $@

$(VENV)/.built: $(VENV)/.python $(SOURCES)
	@echo "== building rdmakit"
	@$(PY) setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.demo: $(VENV)/.python $(VENV)/.built
	@test -e $(VENV)/.installed -a $(VENV)/.installed -nt pyproject.toml || { echo "== installing rdmakit"; \
	    $(PIP) install --quiet --no-build-isolation --editable . && touch $(VENV)/.installed; }
	@touch $@

$(VENV)/.test: $(VENV)/.python $(VENV)/.built
	@test -e $(VENV)/.tools -a $(VENV)/.tools -nt pyproject.toml || { echo "== installing rdmakit, its tests' and notebooks' tools"; \
	    $(PIP) install --no-build-isolation --editable '.[dev,notebooks]' && touch $(VENV)/.tools $(VENV)/.installed; }
	@touch $@

# ---- what must be there before ---------------------------------------------------------------------------------------
check:
	@sh -c "$$CHECK" && echo "python3, its venv module and headers, make and g++ are here"

define CHECK
python=$(PYTHON) cxx=$${CXX:-g++}
case "$$(uname -s)-$$(uname -m)" in
Linux-x86_64 | Linux-aarch64) ;;
*)  echo "error: rdmakit's emulator runs on Linux, x86-64 or aarch64; this is $$(uname -sm)."
    echo "On macOS use a Linux container or virtual machine, on Windows WSL2, in a browser Google Colab: see README.md."
    exit 1 ;;
esac
apt= dnf=
if ! command -v "$$python" >/dev/null; then
    apt="python3 python3-venv python3-dev" dnf="python3 python3-devel"
elif ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $$python is $$("$$python" -V 2>&1); rdmakit needs Python 3.10 or newer."
    echo "Install one and name it, for example: make PYTHON=python3.12 demo"
    exit 1
else
    "$$python" -c 'import venv, ensurepip' 2>/dev/null || apt="$$apt python3-venv"
    "$$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        { apt="$$apt python3-dev" dnf="$$dnf python3-devel"; }
fi
command -v "$$cxx" >/dev/null || { apt="$$apt g++" dnf="$$dnf gcc-c++"; }
if [ -n "$$apt" ]; then
    echo "error: this machine lacks what rdmakit is built with. One line installs it:"
    echo "  Debian, Ubuntu:  sudo apt-get install -y" $$apt
    echo "  Fedora:          sudo dnf install -y" $${dnf:-python3}
    exit 1
fi
endef
export CHECK
