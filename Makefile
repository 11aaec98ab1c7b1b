# Everything here needs python3 (3.11 or newer, with venv), git and make, and no root.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh
export PATH := $(CURDIR)/.venv/bin:$(PATH)

#: Arguments of `make demo`, e.g. ARGS=--once.
ARGS ?=
#: The interpreter that .venv is made with; empty takes the newest that fits.
PYTHON ?=

PIP := .venv/bin/python -m pip --disable-pip-version-check
LOCK := build/lock/bin/uv pip compile --no-config --system-certs --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --extra postgres --custom-compile-command 'make lock' \
	--quiet $(LOCKFLAGS)

.PHONY: help demo run test check nightly models asterisk lock clean

help:  ## Show this help
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

demo: .venv/runtime.stamp  ## Play a sample call through the whole house (ARGS=--once exits by itself)
	@callcore demo $(ARGS)

run: .venv/runtime.stamp  ## Start every process, ready for an Asterisk (callcore up)
	@callcore up

models: .venv/runtime.stamp  ## Download and verify the models that the settings use
	@callcore models pull

test: .venv/dev.stamp models asterisk  ## Set up what is missing, then make check
	@$(MAKE) --no-print-directory check

asterisk:  ## Unpack an Asterisk for the tests, below ~/.cache (without it they skip, in CI they fail)
	@tools/install-asterisk || test "$$CI" != true

check:  ## Formatting, lint, types, import contracts and all tests
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not slow and not nightly"
	@# Whole sites with real calls: side by side they would take each other's processor.
	python -m pytest -m "slow and not nightly"

nightly: .venv/dev.stamp  ## The proofs of reliability in full size (hours; SOAK_S=300 shortens the soak)
	python -m pytest -m nightly -rP
	WEB_KILLS=200 python -m pytest tests/test_doors.py -k web_process_was_killed
	SPOOL_TORTURE_FILES=10000 python -m pytest tests/test_spool_torture.py

lock:  ## Write both lock files anew (LOCKFLAGS=--upgrade takes new versions)
	@test -x build/lock/bin/uv || { "$$(sh tools/find-python)" -m venv build/lock && \
		build/lock/bin/python -m pip install --quiet uv; }
	echo 'setuptools>=77' | $(LOCK) -o requirements.lock setup.cfg -
	echo 'setuptools>=77' | $(LOCK) -c requirements.lock -o requirements-dev.lock \
		setup.cfg requirements-dev.in -

clean:  ## Remove .venv, builds and caches; var/ with its calls and models stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was made from, so a second start installs nothing.
.venv/runtime.stamp: requirements.lock setup.cfg setup.py pyproject.toml
	@.venv/bin/python -c '' 2>/dev/null || \
		{ python="$$(sh tools/find-python "$(PYTHON)")" && "$$python" -m venv --clear .venv; }
	$(PIP) install --require-hashes -r requirements.lock
	@# setuptools comes from the lock, so nothing unhashed is downloaded to build callcore.
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev.stamp: .venv/runtime.stamp requirements-dev.lock
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@
