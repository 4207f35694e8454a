# `make` prints help. Every target is one call of `python -m batchline`, pytest or flake8; the logic is theirs.
PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= quick
DEVICE  ?= auto
K       ?=
RUN     ?=
OUT     ?=
PIN     ?=
WORKLOAD ?=
BATCH   ?=
COST_CAP ?=
BASE    ?=
BUDGET  ?=
A       ?=
B       ?=
FORCE   ?=
HISTORY ?=
CASE    ?=

# A setting's value as one word of the shell, whatever is in it but $, which make takes for its own.
quoted = '$(subst ','\'',$($1))'

PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
INSTALLED := $(if $(VENV),$(VENV)/.installed,)
BROWSER := $(if $(VENV),$(VENV)/.browser,)
PEERS := $(if $(VENV),$(VENV)/.peers,)

.DEFAULT_GOAL := help
.PHONY: help install bench bench-peers noise claims advise coverage noise-cost report list tune dispatch codegen \
        explain profile readme regress selftest compare history aa evidence test test-slow test-page fuzz \
        wrong-run lint clean

help:
	@echo "Batchline: what does the batch size do? Measured, on this machine."
	@echo
	@echo "  make bench      check and time every variant, write a report under reports/runs/"
	@echo "  make bench-peers   wgrad_stats (or K) beside Opacus and BackPACK, which it installs first"
	@echo "  make noise      the gradient noise of two trainings alone, and the batch size that follows"
	@echo "  make advise     that batch size, from a stored run (RUN=) or measured now; WORKLOAD=, BATCH=, COST_CAP="
	@echo "  make claims     train at many batch sizes (minutes) and judge the four claims on batch size"
	@echo "  make coverage   the intervals of the noise scale against a truth that is known"
	@echo "  make noise-cost a training step with NoiseMeter beside a plain one, Opacus' and BackPACK's"
	@echo "  make test       the tests (no GPU needed; with one, the GPU variants run for real)"
	@echo "  make test-slow  the tests that take minutes in all: more whole commands, and interpreted kernels"
	@echo "  make test-page  the page in a real browser (Chromium must be there; its driver is installed)"
	@echo "  make fuzz       1,000 damaged files for every command that reads a stored one, and how each ended"
	@echo "  make wrong-run  a smoke run with all wrong kernels of the tests dropped in: is each refused? (6 to 9 minutes)"
	@echo "  make list       every case id and what it can run on"
	@echo "  make tune       time the kernels' configurations here, keep the winners in kernels/<op>/tuning/"
	@echo "  make dispatch   a run's winners as the tables that a call looks up (RUN=), and what a call costs"
	@echo "  make codegen    compile every GPU variant (no GPU needed), compare with what is pinned (PIN=1 pins)"
	@echo "  make explain    one case on one screen: floor, regime, ceilings, the rung below (CASE=, RUN=)"
	@echo "  make profile    one case under ncu or proton; without a GPU its annotated hot loop (CASE=)"
	@echo "  make regress    is the working tree slower, larger or less accurate than BASE=<revision>? Fails if so"
	@echo "  make selftest   what that gate sees on this machine: false alarms, and known slow-downs of 1 to 10%"
	@echo "  make compare    two stored runs or revisions side by side: A=, B= (FORCE=1 across machines)"
	@echo "  make history    every run on this machine: what changed when (K=, HISTORY=<folder>)"
	@echo "  make aa         each baseline against itself: the spread on identical code"
	@echo "  make evidence   what half an hour of a GPU is best spent on, in parts; OUT= of another call goes on there (K=)"
	@echo "  make report     write a stored run's report again (RUN=reports/runs/<folder>)"
	@echo "  make readme     the figures of the documents anew, from the stored runs that they name"
	@echo "  make lint       black and flake8"
	@echo "  make install    make $(if $(VENV),$(VENV),nothing: VENV is empty) from requirements.txt (bench and test do it by themselves)"
	@echo "  make clean      remove $(if $(VENV),$(VENV),no environment) and caches, never a report"
	@echo
	@echo "make fails with its own 2 whatever a command exits with, and prints that code (Error 1, Error 3: README)."
	@echo
	@echo "Settings, as in make bench PROFILE=smoke K=triton:"
	@echo "  PROFILE=smoke|quick|full   about two minutes, about seven, as long as it takes; or evidence ["$(call quoted,PROFILE)"]"
	@echo "  K=<expression>             only the cases whose id matches, as in pytest -k    ["$(call quoted,K)"]"
	@echo "  DEVICE=auto|cpu|cuda|stand-in   auto takes the GPU if there is one, stand-in none ["$(call quoted,DEVICE)"]"
	@echo "  RUN=<folder>               a stored run: report, advise, dispatch, explain     ["$(call quoted,RUN)"]"
	@echo "  CASE=<id>                  which case, for explain and profile                 ["$(call quoted,CASE)"]"
	@echo "  PIN=1                      codegen writes the pins                             [$(PIN)]"
	@echo "  BASE=<revision>            what regress compares the working tree with       ["$(call quoted,BASE)"]"
	@echo "  BUDGET=<minutes>           regress begins no pair that would end later, evidence no part ["$(call quoted,BUDGET)"]"
	@echo "  A=, B=, FORCE=1            compare's runs or revisions; FORCE: of two machines ["$(call quoted,A) $(call quoted,B)" $(FORCE)]"
	@echo "  HISTORY=<folder>           where bench appends and history reads ["$(if $(HISTORY),$(call quoted,HISTORY),reports/history)"]"
	@echo "  OUT=<folder>               where bench makes its folder, where aa and evidence write ["$(call quoted,OUT)"]"
	@echo "  PYTHON=<python>            the Python to build the environment with, 3.11-3.13 ["$(call quoted,PYTHON)"]"
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

$(VENV)/.peers: requirements-peers.txt $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --no-deps -r requirements-peers.txt
	@touch $@

bench-peers: $(PEERS)
	$(if $(VENV),,@echo "VENV is empty: peers that are missing are not installed (pip install --no-deps -r requirements-peers.txt)")
	$(PY) -m batchline run --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) -k $(if $(K),$(call quoted,K),wgrad_stats) --out $(call quoted,OUT) --history $(call quoted,HISTORY)

noise claims: $(INSTALLED)
	$(PY) -m batchline $@ --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) --out $(call quoted,OUT)

advise: $(INSTALLED)
	@$(PY) -m batchline advise --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) $(if $(RUN),--run $(call quoted,RUN)) \
	  $(if $(WORKLOAD),--workload $(call quoted,WORKLOAD)) $(if $(BATCH),--batch $(call quoted,BATCH)) $(if $(COST_CAP),--cost-cap $(call quoted,COST_CAP))

coverage: $(INSTALLED)
	$(PY) -m batchline coverage

noise-cost: $(PEERS)
	$(PY) -m batchline noise-cost --device $(call quoted,DEVICE)

list: $(INSTALLED)
	@$(PY) -m batchline list --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE)

tune: $(INSTALLED)
	$(PY) -m batchline tune --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) -k=$(call quoted,K) --out $(call quoted,OUT)

dispatch: $(INSTALLED)
	$(PY) -m batchline dispatch --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) -k=$(call quoted,K) $(if $(RUN),--run $(call quoted,RUN))

codegen: $(INSTALLED)
	$(PY) -m batchline codegen $(if $(PIN),--pin)

explain: $(INSTALLED)
	@$(PY) -m batchline explain $(call quoted,CASE) $(if $(RUN),--run $(call quoted,RUN))

profile: $(INSTALLED)
	@$(PY) -m batchline profile $(call quoted,CASE) --device $(call quoted,DEVICE)

readme: $(BROWSER)
	$(PY) -m batchline readme

regress: $(INSTALLED)
	$(PY) -m batchline regress --base $(call quoted,BASE) --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) -k=$(call quoted,K) --out $(call quoted,OUT) \
	  $(if $(BUDGET),--budget $(call quoted,BUDGET))

selftest: $(INSTALLED)
	$(PY) -m batchline selftest --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) -k=$(call quoted,K) --out $(call quoted,OUT)

compare: $(INSTALLED)
	@$(PY) -m batchline compare $(call quoted,A) $(call quoted,B) $(if $(FORCE),--force)

history: $(INSTALLED)
	@$(PY) -m batchline history -k=$(call quoted,K) --out $(call quoted,OUT) --history $(call quoted,HISTORY)

evidence: $(INSTALLED)
	$(PY) -m batchline evidence --device $(call quoted,DEVICE) -k=$(call quoted,K) $(if $(OUT),--out $(call quoted,OUT)) \
	  $(if $(BUDGET),--minutes $(call quoted,BUDGET))

aa: $(INSTALLED)
	$(PY) -m batchline aa --profile $(call quoted,PROFILE) --device $(call quoted,DEVICE) --out $(call quoted,OUT)

report: $(INSTALLED)
	@test -n $(call quoted,RUN) || { echo "say which run: make report RUN=reports/runs/<folder>"; exit 2; }
	$(PY) -m batchline report $(call quoted,RUN)

# In as many processes as tests/conftest.py says, where the library for that is known to be there.
test: $(INSTALLED)
	$(PY) -m pytest $(if $(VENV),-n auto --dist worksteal)

test-slow: $(INSTALLED)
	$(PY) -m pytest -m slow $(if $(VENV),-n auto --dist worksteal)

$(VENV)/.browser: requirements-page.txt $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -r requirements-page.txt
	@touch $@

test-page: $(BROWSER)
	BATCHLINE_BROWSER=needed $(PY) -m pytest tests/test_page_browser.py

fuzz: $(INSTALLED)
	$(PY) -m tests.damage 1000

wrong-run: $(INSTALLED)
	$(PY) -m tests.wrong_run

lint: $(INSTALLED)
	$(PY) -m black --check --quiet --diff .
	$(PY) -m flake8

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .benchmarks build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
