"""What a bug report needs to say about the machine and the installation."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from fastrcnn.config import config_folder, config_names
from fastrcnn.ops import BUILD_INFO

_OPENCV = ("opencv-python-headless", "opencv-python")  # either will do
_PACKAGES = ("fastrcnn", "numpy", *_OPENCV, "pycocotools", "omegaconf", "tqdm")


def report() -> str:
    """Versions, native build, devices and configs, one `name: value` per line."""
    lines = {"python": f"{platform.python_version()} on {platform.platform()}", "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            lines[package] = version(package)
        except PackageNotFoundError:
            if package not in _OPENCV:
                lines[package] = "not installed"
    lines["package folder"] = os.path.dirname(os.path.abspath(__file__))
    lines["native extension"] = ", ".join(f"{name} {_words(value)}" for name, value in BUILD_INFO.items())
    simd = torch.backends.cpu.get_cpu_capability()
    lines["cpu"] = f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, {simd}"
    lines["cuda"] = f"torch was built for {torch.version.cuda or 'the CPU only'}"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        lines[f"cuda:{index}"] = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}"
    lines["configs"] = f"in {config_folder()}\n" + "\n".join(f"  {name}" for name in config_names())
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _words(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def cpu_name() -> str:
    """The processor as it calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        return platform.processor() or platform.machine()
