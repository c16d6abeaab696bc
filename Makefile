# Hilum's commands. `make run` and `make test` are all that a newcomer needs: both install what is missing first.
# HILUM_CACHE holds everything that is downloaded or built (default ~/.cache/hilum); delete it to start afresh.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

HILUM_CACHE ?= $(HOME)/.cache/hilum
export HILUM_CACHE
export LIBTORCH ?= $(HILUM_CACHE)/libtorch-2.13.0/torch
export CARGO_TARGET_DIR ?= $(HILUM_CACHE)/target
export PATH := $(PATH):$(HOME)/.cargo/bin:$(HILUM_CACHE)/cargo-tools/bin

# Where the tests find real input (pydicom-data-1.0.0/data_store/data, pydicom-3.0.2/pydicom/data/test_files) and peers.
export HILUM_TEST_FIXTURES := $(HILUM_CACHE)
export HILUM_PEERS_PYTHON := $(HILUM_CACHE)/peers-venv/bin/python
radiographs := $(HILUM_TEST_FIXTURES)/pydicom-data-1.0.0/data_store/data

DATA ?= data/dev
ARGS ?=
SECONDS_EACH ?= 60
NEXTEST_PROFILE ?= $(if $(CI),ci,default)
hilum := $(CARGO_TARGET_DIR)/debug/hilum

.PHONY: help
help: ## Lists these commands
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | while IFS=$$'\t' read -r name text; do \
	    printf '  make %-13s %s\n' "$$name" "$$text"; done

.PHONY: run
run: setup-run ## Builds and starts Hilum on its own Postgres, sends a real radiograph, shows the results (ONCE=1: then stops)
	@cargo build --bin hilum
	@exec $(hilum) dev --data-dir $(DATA) --bundle models/cxr-covid-reference \
	    --demo-image $(radiographs)/RG1_UNCR.dcm $(if $(ONCE),--once) $(ARGS)

.PHONY: test
test: setup-test ## Runs the whole test suite against real peers (ARGS='FILTER' runs a part of it)
	@cargo test --doc
	@cargo build --bin hilum
	@# The first test starts a throw-away Postgres in this folder, all share it, and it goes when they are done.
	@export HILUM_TEST_POSTGRES_FOLDER="$$(mktemp -d /tmp/hilum-test.XXXXXX)"; chmod 755 "$$HILUM_TEST_POSTGRES_FOLDER"; \
	    trap 'deploy/stop-test-postgres.sh "$$HILUM_TEST_POSTGRES_FOLDER"' EXIT; \
	    cargo nextest run --profile $(NEXTEST_PROFILE) $(ARGS)

.PHONY: check
check: setup-check ## Checks format, lints, architecture, dependencies and their licences
	@cargo fmt --check
	@cargo clippy --all-targets -- -D warnings
	@cargo test --quiet --test architecture
	@cargo deny --log-level error check bans licenses sources
	@for script in deploy/*.sh .ci/run; do bash -n "$$script"; done

.PHONY: bench
bench: setup-bench ## Measures beside Orthanc and storescp (PROFILE=release: with the optimised binary)
	@cargo build $(if $(filter release,$(PROFILE)),--release) --bin hilum
	@HILUM=$(CARGO_TARGET_DIR)/$(if $(filter release,$(PROFILE)),release,debug)/hilum bash benches/run.sh bench $(ARGS)

.PHONY: bench-receive
bench-receive: setup-bench ## Measures receiving beside Orthanc, dcmtk, dicom-rs and pynetdicom (PROFILE=release)
	@cargo build $(if $(filter release,$(PROFILE)),--release) --bin hilum
	@HILUM=$(CARGO_TARGET_DIR)/$(if $(filter release,$(PROFILE)),release,debug)/hilum bash benches/run.sh receive $(ARGS)

.PHONY: bench-scale
bench-scale: setup-bench ## Measures a node with a million studies beside one with a thousand (PROFILE=release)
	@cargo build $(if $(filter release,$(PROFILE)),--release) --bin hilum
	@HILUM=$(CARGO_TARGET_DIR)/$(if $(filter release,$(PROFILE)),release,debug)/hilum bash benches/run.sh scale $(ARGS)

.PHONY: bench-infer
bench-infer: setup-bench setup-golden ## Measures the networks beside PyTorch (PROFILE=release; a 5 GB environment)
	@cargo build $(if $(filter release,$(PROFILE)),--release) --bin hilum
	@HILUM=$(CARGO_TARGET_DIR)/$(if $(filter release,$(PROFILE)),release,debug)/hilum bash benches/run.sh infer $(ARGS)

.PHONY: bench-train
bench-train: setup-golden setup-bench ## Measures training beside the same loop in PyTorch (PROFILE=release; a 5 GB environment)
	@cargo build $(if $(filter release,$(PROFILE)),--release) --bin hilum
	@HILUM=$(CARGO_TARGET_DIR)/$(if $(filter release,$(PROFILE)),release,debug)/hilum bash benches/run.sh train $(ARGS)

.PHONY: train-smoke
train-smoke: setup-test ## Trains on made-up chests, kills and resumes; part of make test
	@cargo build --bin hilum
	@cargo nextest run --test it -E 'test(/^train::/)' $(ARGS)

.PHONY: train-parity
train-parity: setup-golden setup-run ## Fine-tunes the full-width ensemble beside PyTorch and compares losses (a 5 GB environment)
	@cargo build --bin hilum
	@$(HILUM_CACHE)/golden-venv/bin/python deploy/golden/train_parity.py --hilum $(hilum) $(ARGS)

.PHONY: bench-e2e
bench-e2e: setup-bench ## Measures from the last image to the results in the PACS at 1, 10 and 60 studies a minute
	@cargo build $(if $(filter release,$(PROFILE)),--release) --bin hilum
	@HILUM=$(CARGO_TARGET_DIR)/$(if $(filter release,$(PROFILE)),release,debug)/hilum bash benches/run.sh e2e $(ARGS)

.PHONY: bench-cases
bench-cases: setup-run ## Measures the search for similar cases in 100,000 vectors of 2,048 numbers (PROFILE=release)
	@cargo build $(if $(filter release,$(PROFILE)),--release) --bin hilum
	@HILUM=$(CARGO_TARGET_DIR)/$(if $(filter release,$(PROFILE)),release,debug)/hilum bash benches/run.sh cases $(ARGS)

.PHONY: gates-table
gates-table: setup-bench ## Prints which gate of a bundle refuses what (MODELS=folder BUNDLE=name; CHESTS=list.csv; ARGS=--before-networks; PROFILE=release)
	@cargo build $(if $(filter release,$(PROFILE)),--release) --bin hilum
	@folder="$$(mktemp -d)"; trap 'rm -rf "$$folder"' EXIT; \
	    $(HILUM_PEERS_PYTHON) benches/gate_inputs.py "$$folder" --fixtures $(HILUM_TEST_FIXTURES) $(if $(CHESTS),--chests $(CHESTS)); \
	    $(CARGO_TARGET_DIR)/$(if $(filter release,$(PROFILE)),release,debug)/hilum gate table $(if $(MODELS),--models-dir $(MODELS)) \
	        $(BUNDLE) --accept "$$folder/accept.csv" --refuse "$$folder/refuse.csv" $(ARGS)

.PHONY: interop
interop: setup-bench ## Tries every cell of the interoperation matrix and writes docs/interoperation.md
	@cargo build --bin hilum
	@HILUM=$(hilum) bash benches/run.sh interop $(ARGS)

.PHONY: faults
faults: setup-test ## A thousand random faults under load; nothing acknowledged may be lost, doubled or damaged
	@cargo build --bin hilum
	@HILUM=$(hilum) bash benches/run.sh faults $(ARGS)

.PHONY: validate-results
validate-results: setup-results ## Renders every kind of result and has other people's tools read all of it back
	@folder="$$(mktemp -d /tmp/hilum-results.XXXXXX)"; trap 'rm -rf "$$folder"' EXIT; \
	    HILUM_RESULTS_MATRIX="$$folder" cargo test --quiet --lib report::matrix -- --ignored; \
	    $(HILUM_CACHE)/results-venv/bin/python tests/validate_results/check.py "$$folder" $(ARGS)

.PHONY: golden
golden: setup-golden ## Writes the reference outputs of the networks anew with PyTorch (a 5 GB environment; ARGS='NAME ...': only these of parity)
	@$(HILUM_CACHE)/golden-venv/bin/python deploy/golden/make_golden.py --out tests/golden/nn
	@$(HILUM_CACHE)/golden-venv/bin/python deploy/golden/make_parity.py --out tests/golden/nn/parity $(ARGS)
	@$(HILUM_CACHE)/golden-venv/bin/python deploy/golden/make_training.py --out tests/golden/nn

.PHONY: parity
parity: setup-test ## Compares every network with PyTorch's outputs over eight inputs and prints the differences
	@cargo nextest run --lib --no-capture -E 'test(parity_tests::)'

.PHONY: golden-pixels
golden-pixels: setup-golden-pixels ## Writes the reference of pixel decoding anew with pydicom, GDCM, OpenJPEG and dcmtk
	@$(HILUM_CACHE)/pixels-venv/bin/python deploy/golden/make_pixels.py $(HILUM_TEST_FIXTURES) tests/golden/pixels.json

.PHONY: fuzz
fuzz: setup-fuzz ## Fuzzes each target for a minute (SECONDS_EACH=600: for longer; ARGS='pdu': only that one)
	@deploy/fuzz.sh $(SECONDS_EACH) $(ARGS)

.PHONY: release
release: setup-run ## Builds the optimised binary for production
	@cargo build --release --bin hilum
	@printf 'the binary is %s\ninstall it with: sudo deploy/install.sh %s\n' \
	    $(CARGO_TARGET_DIR)/release/hilum $(CARGO_TARGET_DIR)/release/hilum

.PHONY: setup
setup: setup-test ## Only installs what the other commands need

setup_targets := setup-run setup-check setup-test setup-bench setup-golden setup-golden-pixels setup-results setup-fuzz
.PHONY: $(setup_targets)
$(setup_targets):
	@deploy/setup.sh $(@:setup-%=%)
