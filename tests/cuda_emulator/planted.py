"""Runs a kernel of planted.cu, built as LIBRARY, on N numbers in memory for ROOM: planted.py LIBRARY KERNEL N ROOM."""

import ctypes
import os
import sys
from pathlib import Path


def run(library: Path, kernel: str, n: int, schedule: str = "in_order", room: int = 129) -> list[float]:
    """The n numbers 1, 2, ... and what follows them in `room`, after the kernel. Raises RuntimeError with its error."""
    os.environ["CUDA_EMULATOR_SCHEDULE"] = schedule
    # From the allocator, so that AddressSanitizer knows where it ends.
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    memory = libc.malloc(room * 4)
    data = (ctypes.c_float * room).from_address(memory)
    data[:] = [float(i + 1) if i < n else 0.0 for i in range(room)]
    error = ctypes.create_string_buffer(4096)
    ctypes.CDLL(str(library)).run_planted(kernel.encode(), n, ctypes.c_void_p(memory), error)
    result = list(data)
    libc.free(memory)
    if error.value:
        raise RuntimeError(error.value.decode())
    return result


if __name__ == "__main__":
    print(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), room=int(sys.argv[4])))
