# The project's entry points. `make demo` and `make test` set up what is missing first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := $(CURDIR)/.venv
PYTHON := $(VENV)/bin/python
PYTEST_ARGS ?=
# Tests run beside each other by groups (tests/conftest.py); a lost worker ends the run.
WORKERS ?= $(shell nproc)
PYTEST := $(PYTHON) -m pytest --dist loadgroup --no-loadscope-reorder --max-worker-restart 0

.PHONY: help setup vllm build demo demo-pd test test-sanitized check lint format bench dashboards docs wheel install-units clean

help:
	@echo "make setup       install system packages (as root), a venv, the build and the commands; safe to repeat"
	@echo "make vllm        a venv with unmodified vLLM-Ascend: 4.3 GB to download, 8 GB installed, shared by checkouts"
	@echo "make build       compile the natives in place (after a change to C++)"
	@echo "make demo        two LLM servers on one emulated NPU, traced and gated; writes demo-report.json"
	@echo "make demo-pd     vLLM-Ascend's prefill and decode on one emulated NPU (after make vllm); demo-pd-report.json"
	@echo "make test        lint, unit tests and end-to-end tests (PYTEST_ARGS='-k gate' for a part)"
	@echo "make check       the fast inner loop: lint, types, and tests that need neither root, torch nor a device"
	@echo "make lint        ruff, clang-format, mypy, clang-tidy"
	@echo "make format      lay the sources out as lint wants them"
	@echo "make test-sanitized  the data plane under address, undefined-behaviour and thread sanitizers"
	@echo "make bench       the benchmarks, one JSON object each"
	@echo "make dashboards  write the Grafana dashboards to dashboards/out"
	@echo "make docs        build the pages of docs/ into build/site and check their links"
	@echo "make wheel       build a wheel into dist/"
	@echo "make install-units  as root: systemd's units for flexnpud (DESTDIR= for a package)"
	@echo "make clean       remove what the build made"

setup:
	@scripts/setup test

vllm:
	@scripts/vllm

build: $(PYTHON)
	@scripts/build

$(PYTHON):
	@echo "make: no $(VENV): run 'make setup' first" >&2; exit 1

# A demo builds what it runs.
demo:
	@scripts/setup demo
	@$(VENV)/bin/flexnpu demo

demo-pd:
	@scripts/vllm where >/dev/null
	@scripts/setup demo
	@$(VENV)/bin/flexnpu demo-pd

test: setup
	@scripts/lint fast
	@if [ "$${FLEXNPU_VLLM:-}" = 1 ]; then scripts/vllm; fi
	@$(PYTEST) -n $(WORKERS) $(PYTEST_ARGS)

test-sanitized: $(PYTHON)
	@scripts/test-sanitized

check: $(PYTHON)
	@scripts/lint fast
	@$(PYTEST) -n 2 -q -m unit $(PYTEST_ARGS)

lint: build
	@scripts/lint

format: $(PYTHON)
	@scripts/format

bench: setup
	@scripts/bench

dashboards: $(PYTHON)
	@$(PYTHON) -m dashboards

docs: $(PYTHON)
	@$(PYTHON) -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

wheel: $(PYTHON)
	@$(VENV)/bin/pip wheel --no-build-isolation --no-deps --wheel-dir dist .

# flexnpud must be readable to the user flexnpu: not below /root.
install-units: BIN ?= $(VENV)/bin
install-units:
	@install -d $(DESTDIR)/etc/systemd/system $(DESTDIR)/etc/sysusers.d $(DESTDIR)/etc/flexnpu
	@sed 's|@BIN@|$(BIN)|g' packaging/systemd/flexnpud@.service > $(DESTDIR)/etc/systemd/system/flexnpud@.service
	@install -m 644 packaging/systemd/flexnpu.sysusers.conf $(DESTDIR)/etc/sysusers.d/flexnpu.conf
	@echo "next: systemd-sysusers && systemctl daemon-reload && systemctl enable --now flexnpud@0"

clean:
	@rm -rf build dist dashboards/out demo-report.json demo-pd-report.json flexnpu/client/lib flexnpu/emulator/lib
	@find flexnpu probes collectors controllers -name '*.so' -delete
