"""The native libraries: what they say of themselves, what setup.py obeys, what a user reads when something is off."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import fastrcnn
from fastrcnn.ops import _library

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fastrcnn.__file__).parent

pytestmark = pytest.mark.filterwarnings("ignore")
checkout = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree")


def run_python(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_CUDA", "FASTRCNN_CPU_ONLY", "CUDA_HOME")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment | env, capture_output=True, text=True, timeout=300
    )


def test_build_info_names_what_was_built():
    info = fastrcnn.ops.BUILD_INFO
    assert info["version"] == fastrcnn.__version__
    assert info["abi_target"] == "2.10"
    assert re.match(r"(gcc|clang) \d+", info["compiler"])
    assert re.match(r"2\.\d+", info["built_with_torch"])
    assert info["simd"]
    assert (info["cuda"] is None) == (info["cuda_architectures"] is None)


def test_every_operator_of_the_schemas_is_registered():
    schemas = (ROOT / "csrc" / "schemas.cpp").read_text()
    names = re.findall(r'"(\w+)\(', schemas)
    assert len(names) >= 10
    for name in names:
        keys = ["CPU", "CompositeExplicitAutograd"]
        assert any(torch._C._dispatch_has_kernel_for_dispatch_key(f"fastrcnn::{name}", key) for key in keys), name


def test_operators_do_not_depend_on_python():
    """libfastrcnn.so must load under any Python: no symbol of the interpreter is undefined in it."""
    symbols = subprocess.run(["nm", "-D", "-u", PACKAGE / "libfastrcnn.so"], capture_output=True, text=True)
    if symbols.returncode != 0:
        pytest.skip("no nm on this machine")
    assert not re.findall(r"\bPy[A-Z_]\w*", symbols.stdout)


# An editable install would find the checkout's own extension; its import hook is taken out.
IMPORT = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]; import fastrcnn"


@pytest.fixture
def package_without_extension(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "fastrcnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_import_without_extension_says_which_command_repairs(package_without_extension: Path):
    result = run_python("-c", IMPORT, cwd=package_without_extension)
    assert result.returncode != 0
    assert "The native extension of fastrcnn is not built" in result.stderr
    assert "pip install --no-build-isolation" in result.stderr


def test_import_in_a_checkout_names_its_folder(package_without_extension: Path):
    (package_without_extension / "setup.py").touch()
    result = run_python("-c", IMPORT, cwd=package_without_extension)
    assert f"in {package_without_extension}, run" in result.stderr
    assert "pip install -e . --no-build-isolation" in result.stderr


def test_extension_of_another_version_says_which_command_repairs(package_without_extension: Path):
    fake = "def build_info():\n    return {'version': '0.0.0', 'built_with_torch': '2.10.0', 'cuda': None}\n"
    (package_without_extension / "fastrcnn" / "_C.py").write_text(fake)
    result = run_python("-c", IMPORT, cwd=package_without_extension)
    assert result.returncode != 0
    # Where the package is not installed there is no version to compare with, and the missing library is reported.
    assert "of version 0.0.0, the package of version" in result.stderr or "libfastrcnn.so" in result.stderr
    assert "Rebuild it" in result.stderr


def test_extension_built_from_other_sources_says_which_command_repairs(tmp_path: Path, monkeypatch):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "schemas.cpp").write_text("// edited after the build")
    monkeypatch.setattr(_library, "CHECKOUT", True)
    monkeypatch.setattr(_library, "PACKAGE", tmp_path / "fastrcnn")
    with pytest.raises(ImportError, match=r"built from other sources[\s\S]*pip install -e"):
        _library.load()


@checkout
def test_setup_names_the_folder_without_a_toolkit(tmp_path: Path):
    result = run_python("setup.py", "--version", cwd=ROOT, CUDA_HOME=str(tmp_path))
    assert result.returncode != 0
    assert f"CUDA_HOME={tmp_path} holds no bin/nvcc" in result.stderr
    result = run_python("setup.py", "--version", cwd=ROOT, CUDA_HOME=str(tmp_path), FASTRCNN_CPU_ONLY="1")
    assert result.returncode == 0, result.stderr


def test_library_that_does_not_load_says_which_command_repairs(package_without_extension: Path, monkeypatch):
    (package_without_extension / "libfastrcnn.so").write_bytes(b"not a library")
    monkeypatch.setattr(_library, "PACKAGE", package_without_extension)
    with pytest.raises(ImportError, match=r"does not load under torch[\s\S]*Rebuild it"):
        _library._load_library("libfastrcnn.so", {"built_with_torch": "2.10.0"})


def test_cuda_of_another_major_version_names_both():
    _library._check_cuda_versions("13.0", "13.2")
    with pytest.raises(ImportError, match=r"built for CUDA 12.8[\s\S]*uses CUDA 13.0"):
        _library._check_cuda_versions("12.8", "13.0")


@checkout
def test_setup_without_torch_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"Install torch \(>= 2.10\) first[\s\S]*--no-build-isolation"):
        runpy.run_path(str(ROOT / "setup.py"))


@checkout
def test_setup_finds_the_toolkit_behind_a_wrapper(tmp_path: Path):
    toolkit, bin_folder = tmp_path / "toolkit", tmp_path / "bin"
    (toolkit / "bin").mkdir(parents=True)
    (toolkit / "include").mkdir()
    (toolkit / "include" / "cuda_runtime.h").touch()
    bin_folder.mkdir()
    for path, text in (
        (toolkit / "bin" / "nvcc", "#!/bin/sh\n"),
        (bin_folder / "nvcc", f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n'),
    ):
        path.write_text(text)
        path.chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    result = run_python("setup.py", "--version", cwd=ROOT, PATH=path, FASTRCNN_CPU_ONLY="1")
    assert f"CUDA_HOME = {toolkit}" in result.stdout, result.stderr
    assert "with_cuda = False" in result.stdout


@checkout
def test_setup_refuses_contradicting_switches():
    result = run_python("setup.py", "--version", cwd=ROOT, FORCE_CUDA="1", FASTRCNN_CPU_ONLY="1")
    assert result.returncode != 0
    assert "FORCE_CUDA=1, but FASTRCNN_CPU_ONLY=1 is set." in result.stderr


@checkout
def test_sdist_holds_all_that_the_build_needs(tmp_path: Path):
    copy = tmp_path / "source"
    left_out = (".git", ".venv", "build", "runs", "*.so", "*.egg-info")
    at_work = (".*_cache", "__pycache__")  # where other tests put and remove files meanwhile
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left_out, *at_work))
    result = run_python("setup.py", "-q", "sdist", "-d", str(tmp_path / "dist"), cwd=copy, FASTRCNN_CPU_ONLY="1")
    assert result.returncode == 0, result.stderr
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*")}
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*.yaml")}
    assert sources | configs | {"setup.py", "pyproject.toml", "fastrcnn/py.typed"} <= names


def test_configs_are_installed_with_the_package():
    assert "faster_rcnn_r50_fpn_1x_coco" in fastrcnn.config_names()
