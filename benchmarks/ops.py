"""The ops next to torchvision's and the plain reference's on the same inputs: medians, taking turns.

    python benchmarks/ops.py [--only NMS] [--device cuda] [--json results.json]

torchvision is called in its better memory layout. GB/s: the bytes that an op cannot avoid to move (each input and
output once) over our time. Memory: the peak during a call above what was allocated before it, results included; on the
CPU each figure is taken in a process of its own. The goals are ratios to torchvision on a CPU with two threads.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

import torch
import torchvision
from op_cases import Call, Case, Prepare, cases

from fastrcnn import __version__
from fastrcnn.benchmark import machine_name, time_alternately

SECONDS_PER_CASE, MOST_REPEATS = 1.5, 200  # quick ops run more often than --repeats


@dataclass
class Result:
    """One row. None: not measured; notes says why. Times in ms, memory in MB of 2^20 bytes."""

    case: str
    goal: float | None
    memory_goal: float | None
    ours: float | None = None
    torchvision: float | None = None
    torchvision_layout: str = ""
    reference: float | None = None
    ratio: float | None = None
    gb_per_s: float | None = None
    ours_memory: float | None = None
    torchvision_memory: float | None = None
    repeats: int = 0
    notes: list[str] = field(default_factory=list)


def measure(case: Case, device: torch.device, repeats: int) -> Result:
    result = Result(case.name, *((case.goal, case.memory_goal) if device.type == "cpu" else (None, None)))
    sides = case.make(device)
    calls: dict[str, Call] = {}
    round_seconds = 0.0
    for name, prepare in {"ours": sides.ours, **sides.torchvision}.items():
        side = name if name == "ours" else f"torchvision {name}".strip()
        call, seconds = attempt(prepare, side, device, result)
        if call is not None:
            calls[name] = call
            round_seconds += seconds
    result.repeats = max(repeats, min(MOST_REPEATS, int(SECONDS_PER_CASE / max(round_seconds, 1e-6))))
    timed = time_alternately(list(calls.values()), result.repeats, device)
    times = {name: 1e3 * median(seconds) for name, seconds in zip(calls, timed, strict=True)}
    result.ours = times.pop("ours", None)
    if result.ours is not None:
        result.gb_per_s = sides.moved / result.ours / 1e6
        result.ours_memory = peak_memory(case, "ours", "", calls["ours"], device, result)
    if times:
        best = min(times, key=times.__getitem__)
        result.torchvision, result.torchvision_layout = times[best], best
        result.torchvision_memory = peak_memory(case, "torchvision", best, calls[best], device, result)
        if result.ours is not None:
            result.ratio = result.torchvision / result.ours
    if isinstance(sides.reference, str):
        result.notes.append(f"reference: not timed, {sides.reference}")
    else:
        call, seconds = attempt(sides.reference, "reference", device, result)
        if call is not None:  # slow, and for orientation only: timed by itself, few times
            more = 0 if seconds > 1 else 4
            result.reference = 1e3 * median([seconds, *(run_once(call, device) for _ in range(more))])
    return result


def attempt(prepare: Prepare, side: str, device: torch.device, result: Result) -> tuple[Call | None, float]:
    """Sets a side up and runs it once: the call and its seconds. If that fails, says so in result.notes."""
    try:
        call = prepare()
        seconds = run_once(call, device)
        return call, seconds if seconds > 1 else run_once(call, device)  # a first run also loads code
    except Exception as error:  # whatever stops a side must not stop the others
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        result.notes.append(f"{side}: cannot run here, {reason}")
        return None, 0.0


def run_once(call: Call, device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_memory(case: Case, side: str, variant: str, call: Call, device: torch.device, result: Result) -> float | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    program = Path(__file__).with_name("op_memory.py")
    command = [sys.executable, str(program), case.name, side, variant, str(torch.get_num_threads())]
    # glibc then gives freed blocks back at once, and what is resident is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        result.notes.append(f"memory of {side}: not measured, {reason}")
        return None
    return float(done.stdout)


def row(result: Result) -> str:
    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    layout = f" ({result.torchvision_layout})" if result.torchvision_layout else ""
    return (
        f"| {result.case} | {cell(result.ours, 3)} | {cell(result.torchvision, 3)}{layout} "
        f"| {cell(result.reference, 1)} | {cell(result.ratio, 1)} | {cell(result.gb_per_s, 2)} "
        f"| {cell(result.ours_memory, 1)} | {cell(result.torchvision_memory, 1)} | {verdict(result)} |"
    )


def verdict(result: Result) -> str:
    goals = []
    if result.goal is not None:
        met = result.ratio is not None and result.ratio >= result.goal
        goals.append(f"{result.goal:g}x: {'met' if met else '**not met**'}")
    if result.memory_goal is not None:
        met = result.ours_memory is not None and result.ours_memory < result.memory_goal
        goals.append(f"under {result.memory_goal:g} MB: {'met' if met else '**not met**'}")
    return ", ".join(goals) or "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each side, at least")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    chosen = [case for case in cases(device) if arguments.only.lower() in case.name.lower()]
    if not chosen:
        parser.error(f"--only {arguments.only}: expected a part of one of {[case.name for case in cases(device)]}")
    versions = f"fastrcnn {__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    heading = f"{machine_name(device)}; {versions}; {date.today()}"
    print(f"{heading}; medians of {arguments.repeats} runs or more, in turn\n")
    print("| op | fastrcnn ms | torchvision ms | reference ms | ratio | GB/s | MB | torchvision MB | goal |")
    print("|---|---|---|---|---|---|---|---|---|")
    results = []
    for case in chosen:
        results.append(measure(case, device, arguments.repeats))
        print(row(results[-1]), flush=True)
        if arguments.json:
            content = {"machine": heading, "results": [asdict(result) for result in results]}
            arguments.json.write_text(json.dumps(content, indent=1))
    notes = [f"- {result.case}: {note}" for result in results for note in result.notes]
    print("\n".join(["", *notes]))


if __name__ == "__main__":
    main()
