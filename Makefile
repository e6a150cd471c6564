# The project's commands. `make` alone lists them.
# CARGO_TARGET_DIR, when set, is where everything is built, and where the demo's pictures go.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

# The backends that `make matrix` goes through: what this system can have.
ifeq ($(OS),Windows_NT)
BACKENDS ?= vulkan dx12
else ifeq ($(shell uname -s),Darwin)
BACKENDS ?= metal
else
BACKENDS ?= vulkan gl
endif

# Targets that `make matrix` goes through after them: what needs none of this machine's GPUs.
PARTS ?= web-test compilers dxc radv cross deny api-check fuzz

PYTHON ?= python3

# No "Leaving directory" after the summary of a nested `make test`.
MAKEFLAGS += --no-print-directory

# Mesa complains where there is none.
export XDG_RUNTIME_DIR := $(or $(XDG_RUNTIME_DIR),$(TMPDIR),/tmp)

.DEFAULT_GOAL := help
.PHONY: help adapter demo test lint check bench web web-test compilers dxc radv cross peers deny api api-check fuzz matrix clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

adapter: ## make sure that there is an adapter; install Mesa's software drivers where there is none
	@bash scripts/ensure-adapter.sh

demo: adapter ## train a small network on handwritten digits and draw what batch norm does
	$(CARGO) run --release --locked --example digits -- --out "$(TARGET)/demo"
	@echo "The pictures are in $(TARGET)/demo"

# The documentation's examples go first: their runner ends with its timing, the other with its summary.
test: adapter ## run every test
	$(CARGO) test --workspace --locked --doc
	$(CARGO) test --workspace --locked --tests

# The library without features is what a wgpu program links, so it is linted on its own too.
lint: ## formatting, clippy and the documentation, all warnings being errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy --package wgpu-batchnorm --lib --no-default-features --locked -- -D warnings
	RUSTDOCFLAGS="$(RUSTDOCFLAGS) -D warnings" $(CARGO) doc --workspace --no-deps --all-features --locked

# One after the other, whatever -j says: the tests come last.
check: ## lint, then test: what continuous integration runs
	@$(MAKE) lint
	@$(MAKE) test

bench: adapter ## host costs and GPU times by criterion; FILTER=part-of-a-name takes some
	$(CARGO) bench --locked --bench host --bench passes -- $(FILTER)

web: ## build the browser page: check, benchmark and a live picture through WebGPU
	@bash scripts/build-web.sh

web-test: web ## drive the page in a headless Chromium, whose compiler sees every shader
	$(CARGO) fmt --manifest-path web/Cargo.toml --all --check
	@bash scripts/test-web.sh

# The companion crate that asks compilers: a workspace of its own, so that nothing else depends on what it needs.
COMPILERS := --locked --manifest-path tools/compilers/Cargo.toml --target-dir "$(TARGET)/compilers"

compilers: ## lint and test the companion crate of the next two
	$(CARGO) fmt --manifest-path tools/compilers/Cargo.toml --check
	$(CARGO) clippy $(COMPILERS) --all-targets -- -D warnings
	$(CARGO) test $(COMPILERS)

dxc: ## every variant as HLSL through the real DirectX shader compiler
	@library="$$(bash scripts/dxc.sh)" && $(CARGO) run --quiet $(COMPILERS) -- dxc --library "$$library"

RADV_ICD ?= /usr/share/vulkan/icd.d/radeon_icd.x86_64.json

radv: ## what plans choose through Mesa's compiler for AMD, against benches/results/radv.md
	@bash scripts/apt-install.sh "$(RADV_ICD)" libvulkan1 mesa-vulkan-drivers
	@$(CARGO) run --quiet $(COMPILERS) -- radv --check --icd "$(RADV_ICD)"

cross: ## type-check the library for Windows (DX12) and macOS (Metal)
	@bash scripts/cross-check.sh

peers: adapter ## time Burn and PyTorch on the CPU beside ours (minutes to build; BENCH, BURN, PYTORCH are options)
	@PYTHON="$(PYTHON)" bash benches/peers/run.sh

deny: ## licences, duplicates, sources and known vulnerabilities of what is linked
	@bash scripts/deny.sh

api: ## record the public API in docs/public-api.txt
	@bash scripts/public-api.sh write

api-check: ## the public API against the recorded one
	@bash scripts/public-api.sh check

MINUTES ?= 12

fuzz: adapter ## arbitrary files, plans and results, for MINUTES; a line for each target at the end
	@bash scripts/fuzz.sh "$(MINUTES)"

# One after the other, whatever -j says, each even when another failed; one table at the end.
matrix: ## check, every kernel path on every backend, the browser and compilers (before a release)
	@$(PYTHON) scripts/matrix.py "$(BACKENDS)" "$(PARTS)"

clean: ## remove what was built
	$(CARGO) clean
