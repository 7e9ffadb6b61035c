"""Peak extra memory of one call of one side of a case on the CPU, its results included: prints MB (of 2^20 bytes).

    python benchmarks/op_memory.py "IoU, 2000 x 100" ours "" 2

Run by ops.py, in a process of its own, because a process keeps what earlier calls allocated. The case's inputs are made
and the call is made once before the measured one, so that threads run and code is loaded; what that first call leaves
allocated (buffers that an op keeps for its next call) counts as extra. Linux counts resident pages per core and adds
them up in steps: the error is up to 0.3 MB.
"""

import argparse
import gc
import re
from pathlib import Path

import torch
from op_cases import cases

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(*fields: str) -> int:
    """The sum of fields of /proc/self/status in KiB."""
    text = STATUS.read_text()
    return sum(int(re.search(rf"{field}:\s+(\d+)", text)[1]) for field in fields)


def extra_memory(call) -> float:
    gc.collect()
    anonymous = resident("RssAnon")
    call()
    gc.collect()
    before = anonymous + resident("RssFile", "RssShmem")  # of a first call's growth only loaded code is not extra
    CLEAR.write_text("5")  # the peak becomes what is resident now
    result = call()
    peak = resident("VmHWM")
    del result
    return max(peak - before, 0) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case")
    parser.add_argument("side", choices=("ours", "torchvision"))
    parser.add_argument("variant", help="which of torchvision's ways")
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    torch.rand(1 << 22, requires_grad=True).sum().backward()  # starts the threads of operators and of autograd
    (case,) = [case for case in cases(device) if case.name == arguments.case]
    sides = case.make(device)
    call = (sides.ours if arguments.side == "ours" else sides.torchvision[arguments.variant])()
    print(extra_memory(call))


if __name__ == "__main__":
    main()
