# The two commands of the README are `make demo` and `make test`; `make` alone lists all.
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
VENV2 := .venv-dramatiq2
VENV_DOCS := .venv-docs
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Tests wait for servers more than they compute, so more workers than cores pay.
WORKERS ?= 6
# Tests start hundreds of processes: modules are compiled once, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=
PIP := pip install --quiet --disable-pip-version-check
# Into environment 1 what list 2 has. uv takes a tenth of pip's time, but knows none of pip's settings,
# a company's index say: what it cannot install pip does.
UV = $(1)/bin/uv pip install --quiet --python $(1)/bin/python
install = { $(1)/bin/$(PIP) --require-hashes -r requirements-uv.lock && \
	$(UV) --require-hashes -r $(2); } 2>/dev/null || $(1)/bin/$(PIP) --require-hashes -r $(2)
install_mailpoll = $(UV) --no-deps -e . 2>/dev/null || $(1)/bin/$(PIP) --no-deps -e .

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: demo
demo: $(VENV)/app.installed ## Run everything with 20 sample mailboxes; ONCE=1 verifies and ends
	@ONCE="$(ONCE)" $(VENV)/bin/python -m mailpoll.demo

.PHONY: test
test: servers $(VENV)/dev.installed $(VENV2)/dev.installed ## Install what the tests need, and run them
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal tests
	$(VENV2)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m queue tests

# For example: make campaign ONLY=F73 MINUTES=30 SEED=7
.PHONY: campaign
campaign: servers $(VENV)/dev.installed ## Break everything on purpose: hours; see docs/reliability.md
	$(VENV)/bin/python -m tests.campaign --json docs/reliability.json $(if $(ONLY),--only $(ONLY)) \
		$(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))
	$(VENV)/bin/python -m tests.campaign.report docs/reliability.json docs/reliability.md

.PHONY: servers
servers:
	@sh tests/install-servers

.PHONY: installed
installed: servers $(VENV)/dev.installed $(VENV2)/dev.installed $(VENV_DOCS)/docs.installed ## Install what lint, docs and test need

.PHONY: lint
lint: $(VENV)/dev.installed ## Check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

.PHONY: audit
audit: $(VENV)/dev.installed ## Look the locked packages up among known vulnerabilities
	@PIP_AUDIT=$(VENV)/bin/pip-audit tests/audit

.PHONY: sbom
sbom: $(VENV)/dev.installed ## List what an installation is made of (CycloneDX): build/sbom.json
	@mkdir -p build
	@$(VENV)/bin/cyclonedx-py requirements requirements.lock --output-reproducible -o build/sbom.json
	@echo build/sbom.json

.PHONY: notices
notices: $(VENV)/dev.installed ## List the licences of what an installation is made of: THIRD-PARTY.md
	@$(VENV)/bin/python -m tests.release.notices

.PHONY: pages
pages: $(VENV)/dev.installed ## Make what pages repeat of the code: providers, API reference
	@$(VENV)/bin/python -m tests.docs.pages

.PHONY: docs
docs: $(VENV_DOCS)/docs.installed ## Build the pages as a site that asks no other host: build/site
	@NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --quiet --strict
	@echo build/site/index.html

.PHONY: release-check
release-check: servers $(VENV)/dev.installed ## Build, install and try what is released: dist/
	@$(VENV)/bin/$(PIP) -e ".[release]"
	@$(VENV)/bin/python -m tests.release

# For example: make upgrade-check FROM=v0.1.0
.PHONY: upgrade-check
upgrade-check: servers $(VENV)/dev.installed ## Let this version take over what FROM has filled
	@test -n "$(FROM)" || { echo "say from what: make upgrade-check FROM=v0.1.0"; exit 1; }
	@$(VENV)/bin/python -m tests.upgrade $(FROM)

.PHONY: bench
bench: bench-installed ## Measure mailpoll beside mbsync and a raw download: 5 minutes
	$(VENV)/bin/python -m bench compare --contenders raw,mailpoll,mailpoll-production,mbsync8

.PHONY: bench-full
bench-full: bench-installed ## Measure mailpoll beside every peer, and make docs/performance.md
	$(VENV)/bin/python -m bench compare --rounds 3 --limit 300 --details \
		--json docs/performance/compare.json
	$(VENV)/bin/python -m bench.report

# Peers that are programs run where they are installed: apt install isync offlineimap3
.PHONY: bench-installed
bench-installed: servers $(VENV)/dev.installed
	$(VENV)/bin/$(PIP) -e ".[bench]"

.PHONY: bench-growth
bench-growth: servers $(VENV)/dev.installed ## Measure each step with up to a million messages (20 minutes)
	$(VENV)/bin/python -m bench.growth --json

.PHONY: bench-promise
bench-promise: bench-installed ## Bursts of 5,000 and 20,000 messages with the API in use (10 minutes)
	$(VENV)/bin/python -m bench.promise --json

.PHONY: bench-console
bench-console: servers $(VENV)/dev.installed ## The console's pages with a million messages (10 minutes)
	$(VENV)/bin/python -m bench.console --json

.PHONY: bench-push
bench-push: servers $(VENV)/dev.installed ## Watch 2,000 mailboxes, and see how soon mail is told of
	$(VENV)/bin/python -m bench.push --json

.PHONY: bench-adaptive
bench-adaptive: $(VENV)/dev.installed ## Logins saved by polling in a mailbox's own rhythm
	$(VENV)/bin/python -m bench.adaptive --json

# For example: make soak MINUTES=480
.PHONY: soak
soak: bench-installed ## Run for 120 minutes with mail, accounts that come and go, and faults
	$(VENV)/bin/python -m bench.soak --json $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: bench-wide
bench-wide: servers $(VENV)/dev.installed ## Poll 5,000 mailboxes every minute for ten minutes, four times
	$(VENV)/bin/python -m bench.wide --json

.PHONY: bench-search
bench-search: servers $(VENV)/dev.installed ## Search 100,000 and 1,000,000 messages on both databases
	$(VENV)/bin/python -m bench.search --messages 100000,1000000 --json

.PHONY: bench-newcomer
bench-newcomer: servers $(VENV)/dev.installed ## Time the way from a clone to one's own mail on the screen
	$(VENV)/bin/python -m bench.newcomer

.PHONY: screenshots
screenshots: servers $(VENV)/dev.installed ## Take the pictures of the console in docs/images
	$(VENV)/bin/python -m tests.screenshots

.PHONY: fidelity
fidelity: $(VENV)/dev.installed ## Compare the parser with four others on public test mail
	$(VENV)/bin/python -m tests.fidelity

# Seconds to fuzz for.
FUZZ ?= 600
.PHONY: fuzz
fuzz: $(VENV)/dev.installed ## Fuzz the parser for FUZZ seconds (600)
	$(VENV)/bin/$(PIP) -e ".[fuzz]"
	$(VENV)/bin/python -m tests.fuzz build/fuzz -max_total_time=$(FUZZ) -max_len=65536 \
		-rss_limit_mb=1024 -timeout=10 -artifact_prefix=build/

.PHONY: lock
lock: $(VENV)/dev.installed ## Resolve the dependencies anew
	$(VENV)/bin/$(PIP) uv
	for line in "requirements dashboard demo" "requirements-dramatiq2" \
		"requirements-dev dashboard demo test lint" "requirements-dev-dramatiq2 test"; do \
		set -- $$line; name=$$1; shift; extras=$$(for e in "$$@"; do echo --extra $$e; done); \
		$(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
			--no-header --upgrade setup.cfg $$extras -o $$name.lock || exit 1; done
	sed -n '/^docs =/,/^[a-z]/s/^    //p' setup.cfg | $(VENV)/bin/uv pip compile -q --universal \
		--python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade - \
		-o requirements-docs.lock
	echo uv | $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --upgrade - -o requirements-uv.lock

.PHONY: clean
clean: ## Remove environments and what the demo left
	rm -rf $(VENV) $(VENV2) $(VENV_DOCS) demo-data build dist *.egg-info

$(VENV)/bin/python $(VENV2)/bin/python $(VENV_DOCS)/bin/python:
	@test -n "$(PYTHON)" || { echo "mailpoll needs Python 3.11 or newer: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is missing: apt install python3-venv"; exit 1; }
	@echo "making $(@D:/bin=)"
	@$(PYTHON) -m venv $(@D:/bin=)

# The development environment holds the application's packages too, so either stamp will do for it.
$(VENV)/app.installed: requirements.lock setup.cfg | $(VENV)/bin/python
	@echo "installing packages"
	@$(call install,$(VENV),requirements.lock)
	@$(call install_mailpoll,$(VENV))
	@touch $@

$(VENV)/dev.installed: requirements-dev.lock setup.cfg | $(VENV)/bin/python
	@echo "installing packages for tests"
	@$(call install,$(VENV),requirements-dev.lock)
	@$(call install_mailpoll,$(VENV))
	@touch $@ $(VENV)/app.installed

# After the other one: both write mailpoll.egg-info.
$(VENV2)/dev.installed: requirements-dev-dramatiq2.lock setup.cfg | $(VENV2)/bin/python $(VENV)/dev.installed
	@echo "installing packages for tests with dramatiq 2"
	@$(call install,$(VENV2),requirements-dev-dramatiq2.lock)
	@$(call install_mailpoll,$(VENV2))
	@touch $@

$(VENV_DOCS)/docs.installed: requirements-docs.lock | $(VENV_DOCS)/bin/python
	@echo "installing what builds the site"
	@$(call install,$(VENV_DOCS),requirements-docs.lock)
	@touch $@
