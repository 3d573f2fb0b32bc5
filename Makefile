# Everything that a developer or a stranger types. The package index comes from the environment
# (PIP_INDEX_URL and friends); names and versions come from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/.installed
GENCODE := .gencode/.installed
OLDEST := .transformers-5.17
ON_OLDEST := $(addprefix tests/integrations/kv_cache/,test_generation.py test_others.py)
RIVALS := .bench/.installed
TODAY := $(shell date -u +%Y-%m-%d)
RESULTS := tests/benchmarks/results
SOAK_SECONDS ?= 3600
ON_GPU := PYTHONPATH=.:protos $(if $(wildcard $(VENV)),$(BIN)/python,$(PYTHON))

.PHONY: venv demo check check-long check-gpu probe-gpu bench bench-gpu fix

venv: $(VENV)

$(VENV): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The compiler of the generated code wants an older protobuf than everything else. A node runs there
# too: on the oldest grpcio and protobuf that are promised, and without torch.
$(GENCODE): Makefile
	$(PYTHON) -m venv .gencode
	.gencode/bin/pip install --quiet --disable-pip-version-check \
	    'grpcio-tools==1.71.2' 'grpcio==1.71.2' 'protobuf==5.29.*' 'setuptools==75.8.2' \
	    click numpy nvidia-ml-py prometheus-client rich
	touch $@

# The oldest transformers that is supported, beside the newest: only what differs, torch is shared.
$(OLDEST)/.installed: Makefile $(VENV)
	rm -rf $(OLDEST)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(OLDEST) \
	    'transformers==5.17.0' 'huggingface_hub==1.33.0' 'httpx==0.28.1' 'httpcore==1.0.9' \
	    'certifi==2026.10.19.post1'
	touch $@

demo: $(VENV)
	$(BIN)/python -m aqua_client.demo $(DEMO_FLAGS)

check: $(VENV) $(GENCODE) $(OLDEST)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYTHONPATH=.:protos $(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest -n 3  # on two cores: they mostly wait
	PYTHONPATH=$(OLDEST) $(BIN)/pytest -n 2 tests/integrations/transformers $(ON_OLDEST)

check-long: $(VENV) $(GENCODE)
	$(BIN)/python -m tests.simulation --seeds 2000 --steps 500 \
	    --json $(RESULTS)/simulation-$(TODAY).json
	$(BIN)/python -m tests.simulation --elastic --events 10000000 --jobs 2 \
	    --json $(RESULTS)/elastic-$(TODAY).json
	$(BIN)/python -m tests.mutants --json $(RESULTS)/mutants-$(TODAY).json
	$(BIN)/python -m tests.benchmarks.long --json $(RESULTS)/long-$(TODAY).json -- -n 2
	$(BIN)/python -m tests.benchmarks.soak --seconds $(SOAK_SECONDS) \
	    --json $(RESULTS)/soak-$(TODAY).json

# Needs no venv and no network: a machine with a GPU is asked with the Python that it has. All
# resume: a second call asks only what the first did not answer.
check-gpu:
	$(ON_GPU) -m tests.gpu --only check --json $(RESULTS)/gpu-$(TODAY).json

probe-gpu:
	$(ON_GPU) -m tests.gpu.probe --json $(RESULTS)/probe-$(TODAY).json

# What people park tensors in today; Redis's server comes from the distribution.
$(RIVALS): constraints.txt Makefile
	$(PYTHON) -m venv .bench
	.bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
	    'ray==2.60.0' 'redis==8.1.0' numpy torch
	touch $@

bench: $(VENV) $(RIVALS)
	$(BIN)/python -m tests.benchmarks --json $(RESULTS)/shm-$(TODAY).json

bench-gpu:
	$(ON_GPU) -m tests.gpu --only bench --json $(RESULTS)/gpu-$(TODAY).json

fix: $(VENV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
