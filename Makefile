# Two commands matter: `make demo` and `make test`. Both install first, into .venv, and work in a fresh clone.
# Another interpreter: make PYTHON=python3.12 ...

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
CORES := $(shell getconf _NPROCESSORS_ONLN)
# Tests that start processes wait a good part of their time: one more at a time than there are cores, up to four.
WORKERS ?= $(shell echo $$(($(CORES) < 4 ? $(CORES) + 1 : 4)))

.DEFAULT_GOAL := help
.PHONY: help install system demo test test-all check lint types layers format reference bench-attacks bench-chain bench-codecs bench-crypto bench-defences bench-encrypted bench-mesh bench-smashed bench-split bench-transports fuzz clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make .venv with veilmesh and its pinned dependencies; does nothing when it is up to date

# An environment is bound to the folder it was made in: after a move or a copy it is made again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif
$(STAMP): pyproject.toml constraints.txt scripts/install
	@PYTHON='$(PYTHON)' scripts/install

system: ## install the programs some tests use (chromium, mosquitto, ip) where that is allowed; say what is missing
	@scripts/system-packages

demo: install ## the main job: a mesh with a malicious peer, and its report in runs/demo/report.html
	$(BIN)/veilmesh study run studies/demo.toml --out runs/demo

test: check system ## lint, types, layers and every test but the slow ones
	$(BIN)/pytest -n $(WORKERS) -m "not slow"

# The slow ones are timed meshes and long fuzzing: they have the machine to themselves.
test-all: export EXAMPLES = 150
test-all: test ## the same with more examples of each property, and then every slow test
	$(BIN)/pytest -m slow

check: lint types layers

lint: install ## ruff: rules and format
	$(BIN)/ruff check . scripts/reference
	$(BIN)/ruff format --check . scripts/reference

types: install ## mypy, strict, on every room
	$(BIN)/mypy -p veilmesh

layers: install ## import-linter: the rooms only look down
	$(BIN)/lint-imports

format: install ## put every file into ruff's format
	$(BIN)/ruff check --fix-only . scripts/reference
	$(BIN)/ruff format . scripts/reference

reference: install ## write docs/reference.md anew from what is registered
	$(BIN)/python scripts/reference

bench-attacks: install ## inversion speed and quality; DATA=FILE: CIFAR-10 as parquet; BREACHING=PYTHON: one that has it
	@$(BIN)/python bench/bench_attacks.py $(if $(DATA),--data '$(DATA)') $(if $(BREACHING),--breaching '$(BREACHING)')

bench-defences: install ## every codec and guard against attackers who know it; about two CPU minutes each
	@$(BIN)/python bench/bench_defences.py $(if $(DATA),--data '$(DATA)')

bench-chain: install ## a chain of four peers on slow links, with micro-batches in flight and one at a time
	@$(BIN)/python bench/bench_chain.py

bench-codecs: install ## bytes, error and speed of every codec on a real update; DATA=FILE: CIFAR-10 as parquet
	@$(BIN)/python bench/bench_codecs.py $(if $(DATA),--data '$(DATA)')

bench-crypto: install ## masks against the bare keystream, homomorphic sums against TenSEAL by the book
	@$(BIN)/pytest bench/bench_crypto.py -q --benchmark-columns=min,median,rounds --benchmark-sort=min

bench-encrypted: install ## a linear layer on ciphertexts against the published scheme; what leaks; an encrypted network
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python bench/bench_encrypted.py

bench-mesh: install ## real meshes against one process without a wire; BASELINES=DIR: other systems' scripts beside it
	@$(BIN)/python bench/bench_mesh.py $(if $(BASELINES),--baselines '$(BASELINES)') $(if $(ENVIRONMENTS),--environments '$(ENVIRONMENTS)')
	@$(BIN)/python bench/bench_payload.py $(if $(ENVIRONMENTS),--hivemind '$(ENVIRONMENTS)/hivemind/bin/python')

bench-smashed: install ## pictures from activations at four depths, beside a plain decoder; DATA=FILE: CIFAR-10 as parquet
	@$(BIN)/python bench/bench_smashed.py $(if $(DATA),--data '$(DATA)')

bench-split: install ## a step of split training between two peers; BASELINES=DIR: hivemind's script beside it; DATA=DIR: MNIST
	@$(BIN)/python bench/bench_split.py $(if $(DATA),--data '$(DATA)') $(if $(BASELINES),--baselines '$(BASELINES)') $(if $(ENVIRONMENTS),--environments '$(ENVIRONMENTS)')

bench-transports: install ## 10 and 100 MB over MQTT, libp2p and what else there is; HIVEMIND=PYTHON, GRPC=PYTHON: ones that have them
	@$(BIN)/python bench/bench_transports.py $(if $(REPEAT),--repeat '$(REPEAT)') $(if $(HIVEMIND),--hivemind '$(HIVEMIND)') $(if $(GRPC),--grpc '$(GRPC)')

fuzz: install ## a million mutations of remote bytes through every decoder; TOTAL=N: another number
	@$(BIN)/python bench/fuzz_decoders.py $(if $(TOTAL),--total '$(TOTAL)')

clean: ## remove build outputs and caches; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
