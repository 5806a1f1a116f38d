# `make` lists the targets. It needs nothing but Python >= 3.11 with venv and pip: each target
# first makes or updates its virtual environment, if what is installed there has changed since.

PYTHON ?= python3
PY = .venv/bin/python

# The core's tests: without frameworks, without the checkout's docs and examples, and without the
# top-level conftest.py, which runs the snippets.
CORE = --confcutdir=tests --ignore=tests/integrations --ignore=tests/docs \
	--ignore=tests/test_mutants.py tests

# The servers whose tests `make servers-test` runs, by their names in docs/servers.toml.
SERVERS = BentoML or KServe

# What Ray's environment runs: the tests of its integration, and its snippets.
RAY = tests/integrations/ray batchstream/integrations/ray

.PHONY: help
help:  ## list the targets
	@echo 'make PYTHON=... names the Python of a new environment, make ARGS=... goes to what runs'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo:  ## show LitServe's loop and ours, side by side
	@.ci/environment .venv-demo -e '.[cli,litserve]'
	.venv-demo/bin/python -m batchstream demo $(ARGS)

.PHONY: demo-picture
demo-picture:  ## run the demonstration, and draw the picture of README.md anew
	@.ci/environment .venv-demo -e '.[cli,litserve]'
	.venv-demo/bin/python -m batchstream demo --svg docs/_static/demo.svg $(ARGS)

.PHONY: test
test: environment  ## run all tests and snippets: make test ARGS='-x -k demux'
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

.PHONY: test-pythons
test-pythons: environment  ## run the core's tests on the other Pythons of this machine
	@.ci/test-pythons $(PY) $(CORE) $(ARGS)

.PHONY: test-lowest
test-lowest: environment  ## run the tests of transformers with the oldest release that the extra takes
	@.ci/environment .venv-lowest -e . --group lowest
	.venv-lowest/bin/python -m pytest --confcutdir=tests tests/integrations/transformers $(ARGS)

.PHONY: servers-test
servers-test:  ## run the tests of the servers that `make test` does not install
	@.ci/environment .venv-servers -e . --group servers
	.venv-servers/bin/python -m pytest --confcutdir=tests tests/integrations/servers -k '$(SERVERS)' $(ARGS)

.PHONY: ray-test
ray-test:  ## run the tests of Ray with a Ray of their own, in a network namespace with loopback alone
	@.ci/environment .venv-ray -e '.[ray]' --group ray
	@.ci/ray-test .venv-ray/bin/python -m pytest -o faulthandler_timeout=600 $(or $(ARGS),$(RAY))

.PHONY: wheel-test
wheel-test: environment  ## run the core's tests but races against the installed wheel
	@.ci/wheel-test $(PY) --ignore-glob='*/test_races_*' $(CORE) $(ARGS)

.PHONY: mutants
mutants: environment  ## break the core in many ways and name the test that notices each
	$(PY) tests/mutants.py $(ARGS)

.PHONY: native-check
native-check: environment  ## the native core under sanitizers and valgrind, and its long tests
	@.ci/native-check $(PY) $(ARGS)

.PHONY: coverage
coverage: environment  ## run all tests and report what they do not reach
	$(PY) -m coverage run -m pytest $(ARGS)
	$(PY) -m coverage report

.PHONY: check
check: environment  ## check format, lint and types; edits nothing
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

.PHONY: fix
fix: environment  ## format, and apply the linter's safe fixes
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

.PHONY: docs
docs: environment  ## build the documentation into docs/_build/html; a warning is an error
	$(PY) -m sphinx -E -n -q -W --keep-going -b html docs docs/_build/html

.PHONY: bench
bench: environment  ## run the benchmarks; QUICK=1 for a first look
	$(PY) benchmarks/run.py $(if $(QUICK),--quick) $(ARGS)

.PHONY: bench-compare
bench-compare: environment  ## compare the hot paths with another revision: make bench-compare REV=main~3
	$(PY) benchmarks/compare.py $(REV) $(ARGS)

.PHONY: ray-bench
ray-bench:  ## compare batch and ContinuousBatcher with serve.batch, in replicas of a Ray
	@.ci/environment .venv-ray -e '.[ray]' --group ray
	@.ci/ray-test .venv-ray/bin/python benchmarks/ray_replicas.py $(ARGS)

.PHONY: bench-plots
bench-plots: environment  ## measure again and draw the plots of the documentation
	$(PY) benchmarks/plots.py $(ARGS)

.PHONY: ci
ci:  ## run all that a change has to pass
	@.ci/run

.PHONY: clean
clean:  ## remove environments, caches and everything built
	rm -rf .venv .venv-* build dist docs/_build htmlcov .coverage .coverage.*
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: environment
environment:
	@.ci/environment .venv -e . --group dev
