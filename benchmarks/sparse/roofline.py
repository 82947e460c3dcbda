"""The roofline: the peak rates of this machine, measured by a small C++ program."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.progress import progress, skipped
from benchmarks.timing import Record, reduce
from sparseflow.sparse.kernels.library import core

SOURCE = Path(__file__).with_name("roofline.cpp")
LEVELS = {
    "v4": ["-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"],
    "v3": ["-mavx2", "-mfma"],
}
"""Compiler flags of the core's levels; other levels have none."""
ROUNDS, QUICK_ROUNDS = 15, 3
KIB = 1024


@dataclass(frozen=True)
class Rates:
    """GFLOP/s in each round, over all threads.

    Attributes:
        registers: multiply-adds on registers only.
        first: multiply-adds that each read a random row from the first-level cache.
        second: the same from the second-level cache.
        sizes: bytes of the two working sets, per thread.
        seconds: time of the whole measurement.
    """

    registers: list[float]
    first: list[float]
    second: list[float]
    sizes: tuple[int, int]
    seconds: float


def roofline(share: float) -> list[Record]:
    """The rates as records."""
    rates = measured(torch.get_num_threads(), QUICK_ROUNDS if share < 1 else ROUNDS)
    if rates is None:
        return []
    first, second = (f"random rows, {size // KIB} KiB a thread" for size in rates.sizes)
    cases = (
        ("registers", "registers", rates.registers),
        (first, "L1", rates.first),
        (second, "L2", rates.second),
    )
    return [
        Record(
            benchmark="sparse-roofline",
            case=case,
            figure="multiply-adds",
            unit="GFLOP/s",
            measured_ms=1e3 * rates.seconds,
            baseline_ms=None,
            rounds=len(values),
            settings={"level": level, "threads": torch.get_num_threads()},
            **reduce(values, None, "at least"),  # type: ignore[arg-type]
        )
        for case, level, values in cases
    ]


def bounds(flops: float, dense_seconds: float, share: float) -> dict[str, float]:
    """Largest speed-up over dense that the peak rate of each level allows for ``flops``."""
    rates = measured(torch.get_num_threads(), QUICK_ROUNDS if share < 1 else ROUNDS)
    if rates is None:
        return {}
    levels = {"registers": rates.registers, "L1": rates.first, "L2": rates.second}
    return {
        f"bound_{level}": dense_seconds * max(values) * 1e9 / flops
        for level, values in levels.items()
    }


@cache
def measured(threads: int, rounds: int) -> Rates | None:
    """Compile and run the program; without a compiler report that and return None."""
    compiler = next(filter(None, map(shutil.which, _compilers())), None)
    if compiler is None:
        skipped("roofline", "no C++ compiler found; CXX may name one")
        return None
    sizes = (
        _cache("SC_LEVEL1_DCACHE_SIZE", 32 * KIB) // 2,
        _cache("SC_LEVEL2_CACHE_SIZE", KIB**2) // 2,
    )
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "roofline"
        error = _compile(compiler, program)
        if error:
            skipped("roofline", f"{compiler} failed: {error}")
            return None
        command = [program, threads, rounds, *sizes]
        text = subprocess.run(
            list(map(str, command)), check=True, capture_output=True, text=True
        ).stdout
    table = [[float(x) for x in line.split()] for line in text.splitlines()]
    registers, first, second = (list(column) for column in zip(*table, strict=True))
    progress.print(
        f"roofline, {threads} thread(s): registers {max(registers):.0f}, "
        f"L1 {max(first):.0f}, L2 {max(second):.0f} GFLOP/s at best"
    )
    return Rates(registers, first, second, sizes, perf_counter() - start)


def _compilers() -> list[str]:
    return [os.environ.get("CXX", "c++"), "g++", "clang++"]


def _compile(compiler: str, program: Path) -> str:
    """Compile for the level of the core on this machine; return the error, or an empty text."""
    flags = ["-std=c++17", "-O3", *LEVELS.get(core().level, []), "-ffp-contract=fast", "-pthread"]
    command = [compiler, *flags, "-w", str(SOURCE), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or ["no message"]
    return lines[0] if done.returncode else ""


def _cache(name: str, default: int) -> int:
    try:
        return os.sysconf(name) or default
    except (ValueError, OSError):
        return default
