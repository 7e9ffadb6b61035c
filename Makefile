# make demo    builds, trains a small detector on the CPU, evaluates it and shows pictures: runs/demo/index.html
# make test    builds and runs the test suite
# make test-emulated   only the CUDA kernels, executed on the CPU (tests/cuda_emulator)
# make bench   the tables of benchmarks/README.md
# make lint    ruff, mypy and clang-format
#
# An activated virtual environment is used; without one, .venv is made. torch is installed if it is missing.

PYTHON ?= python3
VENV ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.fastrcnn-installed
TESTABLE := $(VENV)/.fastrcnn-testable
# A process per processor; one that has none left takes tests over from another.
PYTEST := $(RUN) -m pytest -n logical --dist worksteal
NATIVE := $(wildcard csrc/*.* csrc/*/*.*)
EMULATOR := $(wildcard tests/cuda_emulator/*.h tests/cuda_emulator/*.c*)

.PHONY: demo test test-emulated bench lint

demo: $(INSTALLED)
	$(RUN) -m fastrcnn.demo

test: $(TESTABLE)
	$(PYTEST)

test-emulated: $(TESTABLE)
	$(PYTEST) -k "emulated or emulator or (ptx and not ptxas)"

bench: $(TESTABLE)
	$(RUN) benchmarks/ops.py
	$(RUN) benchmarks/stages.py faster_rcnn_r50_fpn_1x_coco
	$(RUN) benchmarks/inference.py faster_rcnn_r50_fpn_1x_coco
	$(RUN) benchmarks/winograd.py
	$(RUN) benchmarks/training.py faster_rcnn_r50_fpn_1x_coco

lint: $(TESTABLE)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(NATIVE) $(EMULATOR)

$(RUN):
	$(PYTHON) -m venv $(VENV)

# The stamp holds the path of this checkout, so that an environment shared with another one is installed anew.
$(INSTALLED): pyproject.toml setup.py $(NATIVE) | $(RUN)
	$(RUN) -m pip install -q --upgrade pip "setuptools>=77" wheel ninja "pybind11>=2.13"
	$(RUN) -c "import torch" 2>/dev/null || $(RUN) -m pip install -q "torch>=2.10"
	$(RUN) -m pip install --no-build-isolation -e ".[curves]"
	echo "$(CURDIR)" > $@

# torchvision must be the release that belongs to the installed torch; where there is none, tests against it are skipped.
$(TESTABLE): $(INSTALLED)
	$(RUN) -m pip install -q --no-build-isolation -e ".[test]"
	$(RUN) -m pip install -q torchvision "torch==$$($(RUN) -c 'import torch; print(torch.__version__)')" || \
	$(RUN) -m pip install -q torchvision "torch==$$($(RUN) -c 'import torch; print(torch.__version__.split("+")[0])')" || \
	echo "No torchvision for this torch: the tests that compare with it are skipped"
	touch $@

ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif
