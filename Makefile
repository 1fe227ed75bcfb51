# make demo and make test do everything on a fresh machine; they make their own .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The constraints hold for Python 3.11 and newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
READY := $(VENV)/.ready

# Linux builds of torch come with gigabytes of CUDA packages unless the CPU build is named.
TORCH ?= $(if $(filter Linux,$(shell uname -s)),2.13.0+cpu,2.13.0)

DEMO := build/demo
EXAMPLE := examples/nvlm-d-tiny
SOURCES = $(shell find nvlm_deploy quantization calibration engines/targets -name '*.py' -o -name '*.yaml')

.PHONY: help setup demo heal native test test-unit test-integration test-memory test-train test-native-speed native-sanitized native-syntax fuzz lint format bench bench-plans bench-variants clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(READY) ## Make .venv with the pinned packages and nvlm-deploy in it.

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with the versions of constraints.txt: once, some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools
	@$(PIP) 'torch==$(TORCH)' || { \
	    echo "error: your package sources have no torch $(TORCH) for this Python"; echo; \
	    echo "hint: add PyTorch's CPU index (PIP_EXTRA_INDEX_URL) and repeat," \
	        "or accept another build: make setup TORCH=2.13.0"; exit 1; } >&2
	@$(PIP) --no-build-isolation --editable '.[dev,modelopt,plots,tensorrt-rtx,train]'
	@touch $@

demo: $(DEMO)/bundle/manifest.json ## Build the INT4 engine of the example checkpoint and ask it about an image.
	@$(BIN)/python examples/demo.py $(DEMO)/bundle

$(DEMO)/bundle/manifest.json: $(READY) $(wildcard $(EXAMPLE)/*.json $(EXAMPLE)/*.safetensors) $(SOURCES)
	@rm -rf $(DEMO)/bundle
	$(BIN)/nvlm-build engine $(EXAMPLE) --recipe int4-rtn --target cpu-x86 -o $(DEMO)/bundle

heal: $(READY) ## Heal the example checkpoint for INT4 with one scale a row; count answers before and after (minutes).
	$(BIN)/python examples/heal.py build/heal

NATIVE := build/native

native: $(READY) ## Build the C and C++ runtime and nvlm-cli, and put them into .venv.
	@engines/runtime/cmake/onnxruntime_headers.sh build/onnxruntime-headers
	@cmake -S engines/runtime -B $(NATIVE) -DCMAKE_INSTALL_PREFIX=$(abspath $(VENV)) -DCMAKE_INSTALL_LIBDIR=lib \
	    -DNVLM_ONNXRUNTIME_INCLUDE_DIR=$(abspath build/onnxruntime-headers/usr/include/onnxruntime) >/dev/null
	@cmake --build $(NATIVE) --parallel
	@cmake --install $(NATIVE) >/dev/null
	@ln -sf $$(find $$(cd $(VENV) && pwd)/lib -path '*/onnxruntime/capi/libonnxruntime.so.*' -print -quit) \
	    $(VENV)/lib/libonnxruntime.so.1
	@echo "$(BIN)/nvlm-cli is ready"

test: test-unit test-integration ## Run both tiers of tests, without the slow ones.

test-unit: $(READY) ## Run the unit tests: one to two minutes.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup tests/unit

test-integration: $(READY) ## Run the integration tests.
	$(BIN)/python -m pytest tests/integration

test-memory: $(READY) ## Measure the peak memory of builds, and of quantizing and exporting at the widths of the 72B (14 GB; slow).
	$(BIN)/python -m pytest -m slow tests/integration/test_memory.py

test-train: $(READY) ## Train small models of all variants until they know 32 samples by heart (minutes).
	$(BIN)/python -m pytest -m slow tests/integration/test_training.py

test-native-speed: $(READY) ## Measure native tiling of a large image beside Pillow.
	$(BIN)/python -m pytest -m slow tests/integration/native

native-sanitized: $(READY) ## Run the native runtime's tests under ASan, LSan and UBSan, then under TSan (minutes).
	NVLM_SANITIZE=address,undefined $(BIN)/python -m pytest tests/integration/native
	NVLM_SANITIZE=thread $(BIN)/python -m pytest tests/integration/native

PART ?= trt
SYNTAX_trt := trt_cuda trt_runtime trt_open
SYNTAX_trtllm := trtllm_executor trtllm_open

native-syntax: ## Compile GPU sessions without linking: PART=trt or trtllm, INCLUDES="DIR DIR" of the makers' headers.
	@for name in $(SYNTAX_$(PART)); do \
	    $(CXX) -std=c++17 -fsyntax-only -Wall -Wextra -Wpedantic -Wconversion -Werror -Iengines/runtime/src \
	        $(addprefix -isystem ,$(INCLUDES)) engines/runtime/src/session/$$name.cpp || exit 1; \
	done; echo "$(PART): $(SYNTAX_$(PART)) compile"

FUZZ_SECONDS ?= 400
FUZZERS := abi bundle encode image manifest tokenizer_file

fuzz: $(READY) ## Run the native runtime's fuzzers, each for FUZZ_SECONDS; needs clang.
	@engines/runtime/cmake/onnxruntime_headers.sh build/onnxruntime-headers
	@cmake -S engines/runtime -B build/fuzz -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DNVLM_FUZZ=ON \
	    -DNVLM_SANITIZE=address,undefined -DNVLM_CLI=OFF >/dev/null
	@cmake --build build/fuzz --parallel --target $(addprefix fuzz_,$(FUZZERS))
	@$(BIN)/python engines/runtime/fuzz/seeds.py bundle build/fuzz/bundle
	@export NVLM_FUZZ_BUNDLE=build/fuzz/bundle; \
	export NVLM_ONNXRUNTIME_LIBRARY=$$(find $$(cd $(VENV) && pwd)/lib -path '*/onnxruntime/capi/libonnxruntime.so.*' -print -quit); \
	for name in $(FUZZERS); do \
	    mkdir -p build/fuzz/corpus/$$name; \
	    build/fuzz/fuzz/fuzz_$$name -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=4096 -verbosity=0 -print_final_stats=1 \
	        -artifact_prefix=build/fuzz/$$name- build/fuzz/corpus/$$name engines/runtime/fuzz/corpus/$$name; \
	done

lint: $(READY) ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-plans: $(READY) ## Compile TensorRT-RTX plans of a realistic shape for four GPUs; ten minutes, 6 GB of memory.
	$(BIN)/nvlm-bench plans

bench-variants: $(READY) ## Compare NVLM-D, X and H: speed, memory, training, accuracy; half an hour, 10 GB of memory.
	$(BIN)/nvlm-bench variants $(addprefix --trained ,$(wildcard examples/nvlm-*-tiny)) -o build/variants

bench: $(READY) ## Measure prefill and decode against transformers; prints a table.
	$(BIN)/nvlm-bench shapes

clean: ## Remove everything that was built, .venv too.
	rm -rf build dist $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
