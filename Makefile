# Each verb sets up what it needs. PYTHON chooses the interpreter of .venv, TORCH_INDEX where torch comes from, and ARGS
# goes to pytest or to the benchmarks.
PROTOS := $(sort $(wildcard protos/zipmoe/v1/*.proto protos/zipmoe/internal/v1/*.proto))
# The installation knows each module by its place: another set of modules is another installation.
READY := .venv/.ready-$(shell find zipmoe services -name '*.py' | sort | cksum | cut -d ' ' -f 1)

PYTEST := .venv/bin/python -m pytest -n 2 --dist loadgroup --durations=25

.PHONY: setup run test test-all lint proto bench fuzz train wheel wheels clean

setup: $(READY)

$(READY): scripts/setup.sh pyproject.toml CMakeLists.txt $(shell find zipmoe/kernels/native -type f)
	scripts/setup.sh $@

run: setup
	.venv/bin/zipmoe demo

test: lint
	$(PYTEST) $(ARGS)

# Also the tests that are marked `extra`: more settings, and the benchmark of other systems (needs a memory cgroup).
test-all: lint
	$(PYTEST) --all $(ARGS)

lint: setup
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && \
	  .venv/bin/buf lint protos && .venv/bin/python -m scripts.tree_figures --check

proto: setup
	.venv/bin/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

bench: setup
	.venv/bin/zipmoe bench codec $(ARGS)

fuzz: setup
	scripts/fuzz.sh $(ARGS)

wheel: setup
	scripts/wheel.sh "$$(uname -m)"

wheels: setup
	scripts/wheel.sh x86_64 aarch64

# Trains the built-in model anew and measures it; about an hour on two cores. What it replaces is in git.
train: setup
	corpus=$$(scripts/fetch_debian.sh bible-kjv-text dict-devil jargon-text) && \
	  .venv/bin/python -m demo.train --corpus $$corpus $(ARGS) && .venv/bin/python -m demo.report --corpus $$corpus

clean:
	rm -rf .venv .cache build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
