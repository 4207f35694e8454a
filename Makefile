# `make` prints help. Every target is one call of `python -m batchline`, pytest, black or
# flake8; the logic is theirs. What is not here is a command: `batchline --help`.
PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= quick
DEVICE  ?= auto
K       ?=
OUT     ?=
HISTORY ?=
RUN     ?=
BASE    ?=
BUDGET  ?=
PIN     ?=
PEERS   ?= .venv-peers

# A setting's value as one word of the shell, whatever is in it but $, which make takes for its own.
quoted = '$(subst ','\'',$($1))'
# A switch's option, where the switch is on.
switched = $(if $(filter-out 0 no false off,$($1)),$2)

PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
INSTALLED := $(if $(VENV),$(VENV)/.installed,)
# The cases of the peers, of PyTorch and of our own kernels beside them.
BESIDE_PEERS := bmm and (torch or triton or helion or tilelang) or wgrad_stats and (torch or fused or opacus or backpack)
CHOSEN := $(if $(K),-k=$(call quoted,K))
BROWSER := $(if $(VENV),$(VENV)/.browser,)

.DEFAULT_GOAL := help
.PHONY: help install bench bench-peers test test-compiled test-commands test-slow test-page lint codegen regress report coverage clean

help:
	@echo "Batchline: what does the batch size do? Measured, on this machine."
	@echo
	@echo "  make bench      check and time every variant, write a report under reports/runs/"
	@echo "  make bench-peers   other libraries' kernels beside ours: in an environment of their own, $(call quoted,PEERS), on top of"
	@echo "                  $(if $(VENV),$(call quoted,VENV),that of PYTHON); K= chooses among their cases, PyTorch's and ours"
	@echo "  make test       the tests (no GPU needed; with one, the GPU variants run for real)"
	@echo "  make test-compiled   the tests that compile GPU kernels in shapes of their own, and look at their code or execute it"
	@echo "  make test-commands   the tests that start whole commands and other processes: they take as long again"
	@echo "  make test-slow  the tests that take minutes in all: more whole commands, simulated error rates, interpreted kernels"
	@echo "  make test-page  the page in a real browser (Chromium must be there; its driver is installed)"
	@echo "  make lint       black and flake8"
	@echo "  make codegen    compile and emulate every GPU variant (no GPU needed), compare with the pins (PIN=1 pins)"
	@echo "  make regress    is the working tree slower, larger or less accurate than BASE=<revision>? Fails if so"
	@echo "  make report     write a stored run's report again (RUN=reports/runs/<folder>)"
	@echo "  make coverage   do the noise scale's 95% intervals cover the truth, or warn? Minutes; fails if one does neither"
	@echo "  make install    make $(if $(VENV),$(VENV),nothing: VENV is empty) from requirements.txt (bench and test do it by themselves)"
	@echo "  make clean      remove $(if $(VENV),$(VENV) and )$(PEERS) and caches, never a report"
	@echo
	@echo "Everything else (list, explain, tune, advise ...) is a command: $(PY) -m batchline --help"
	@echo
	@echo "make fails with its own 2 whatever a command exits with, and prints that code (Error 1, Error 3: README)."
	@echo
	@echo "Settings, as in make bench PROFILE=smoke K=triton:"
	@echo "  PROFILE=smoke|quick|full   about two minutes, about seven, as long as it takes; or evidence ["$(call quoted,PROFILE)"]"
	@echo "  K=<expression>             only the cases (of test, the tests) that match, as in pytest -k    ["$(call quoted,K)"]"
	@echo "  DEVICE=auto|cpu|cuda|stand-in   auto takes the GPU if there is one, stand-in none ["$(call quoted,DEVICE)"]"
	@echo "  OUT=<folder>               where bench and regress make their own, dated folder ["$(if $(OUT),$(call quoted,OUT),reports/runs)"]"
	@echo "  HISTORY=<folder>           the history that bench appends to                   ["$(if $(HISTORY),$(call quoted,HISTORY),reports/history)"]"
	@echo "  RUN=<folder>               the stored run that report reads                    ["$(call quoted,RUN)"]"
	@echo "  BASE=<revision>            what regress compares the working tree with         ["$(call quoted,BASE)"]"
	@echo "  BUDGET=<minutes>           regress begins no pair that would end later         ["$(call quoted,BUDGET)"]"
	@echo "  PIN=1                      codegen writes the pins (PIN=0: it does not)        [$(PIN)]"
	@echo "  PYTHON=<python>            the Python to build the environment with, 3.11-3.13 ["$(call quoted,PYTHON)"]"
	@echo "  PEERS=<folder>             the environment that bench-peers makes                 [$(call quoted,PEERS)]"
	@echo "  VENV=<folder>              the environment; empty: use PYTHON as it is         ["$(call quoted,VENV)"]"

install: $(INSTALLED)

# The stamp is newer than requirements.txt once everything is installed; a broken install leaves none.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Batchline needs Python 3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1): name another with PYTHON="; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	@touch $@

bench: $(INSTALLED)
	$(PY) -m batchline run --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) -k=$(call quoted,K) --out $(call quoted,OUT) --history $(call quoted,HISTORY)

# It sees what the other environment has, CUDA's libraries among it, and installs nothing twice. Only what the other
# one is asked for in its own name is found where it lies, so its prefix is made known too.
$(PEERS)/.installed: requirements-peers.txt $(INSTALLED)
	$(PY) -m venv $(PEERS)
	$(PY) -c 'import site, sys; print("import site; site.PREFIXES.append(%r)" % sys.prefix, *("import site; site.addsitedir(%r)" % one for one in site.getsitepackages()), sep="\n")' \
	  > "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	$(PEERS)/bin/python -m pip install --quiet --no-deps -r requirements-peers.txt
	@touch $@

bench-peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m batchline run --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) \
	  -k=$(if $(K),$(call quoted,K),'$(BESIDE_PEERS)') --out $(call quoted,OUT) --history $(call quoted,HISTORY)

codegen: $(INSTALLED)
	$(PY) -m batchline codegen $(call switched,PIN,--pin)

regress: $(INSTALLED)
	$(PY) -m batchline regress --base $(call quoted,BASE) --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) -k=$(call quoted,K) --out $(call quoted,OUT) \
	  $(if $(BUDGET),--budget $(call quoted,BUDGET))

report: $(INSTALLED)
	@test -n $(call quoted,RUN) || { echo "say which run: make report RUN=reports/runs/<folder>"; exit 2; }
	$(PY) -m batchline report $(call quoted,RUN)

coverage: $(INSTALLED)
	$(PY) -m batchline coverage

# In as many processes as tests/conftest.py says, where the library for that is known to be there.
test: $(INSTALLED)
	$(PY) -m pytest $(CHOSEN) $(if $(VENV),-n auto --dist worksteal)

test-compiled: $(INSTALLED)
	$(PY) -m pytest -m "compiled and not slow" $(CHOSEN) $(if $(VENV),-n auto --dist worksteal)

test-commands: $(INSTALLED)
	$(PY) -m pytest -m "commands and not slow" $(CHOSEN) $(if $(VENV),-n auto --dist worksteal)

test-slow: $(INSTALLED)
	$(PY) -m pytest -m slow $(CHOSEN) $(if $(VENV),-n auto --dist worksteal)

$(VENV)/.browser: requirements-page.txt $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -r requirements-page.txt
	@touch $@

test-page: $(BROWSER)
	BATCHLINE_BROWSER=needed $(PY) -m pytest tests/test_page_browser.py

lint: $(INSTALLED)
	$(PY) -m black --check --quiet --diff .
	$(PY) -m flake8

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .hypothesis .benchmarks build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
