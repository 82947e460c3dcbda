"""The C++ core: find it, load it once, describe it.

The core is a plain shared library that knows neither Python nor torch. It has no OpenMP
runtime of its own: threads are run by the one that torch has loaded, so that a process
never has two thread pools.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import c_char_p, c_double, c_int, c_int64, c_void_p
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch

from sparseflow.core.errors import SparseUnavailable, unknown

ABI = 3

_TYPES = {"p": c_void_p, "i": c_int64, "d": c_double}
# The functions of sparseflow.h that work on tensors, by the types of their arguments:
# pointer, integer, double. Kernels return a status.
KERNELS = {
    "block": "piipi",
    "unblock": "piipi",
    "linear_forward": "iiiippppppii",
    "linear_single": "ippppppii",
    "linear_input_gradient": "iiiippppppi",
    "linear_weight_gradient": "iiiippppppi",
    "max_pool": "iiiiiiiiipppi",
    "max_pool_gradient": "iiiiiiiiipppi",
    "relu_gradient": "ipppi",
    "norm_forward": "iiidipppppppii",
    "norm_gradient": "iiidippppppppppi",
    "conv_starts": "pip",
    "conv_taps": "pippppp",
    "conv_forward": "ppppppppii",
    "conv_input_gradient": "pppppppi",
    "conv_weight_gradient": "ppppppppi",
}
# The others return what sparseflow.h says.
HELPERS = {
    "pattern_check": "iiippp",
    "pattern_transpose": "iiiippppp",
    "pattern_starts": "iiippp",
}


class Core:
    """The functions of a loaded core; ``core.linear_forward(...)`` raises on failure."""

    def __init__(self, path: Path) -> None:
        """Load the library at ``path`` and choose the level that the machine runs best."""
        self.path = path
        try:
            library = ctypes.CDLL(str(path))
            library.sf_abi.restype = c_int64
            abi = library.sf_abi()
        except (OSError, AttributeError) as error:
            raise SparseUnavailable(f"cannot load the core {path}: {error}") from error
        if abi != ABI:
            raise SparseUnavailable(
                f"the core {path} has interface {abi}, this sparseflow needs {ABI}; reinstall it"
            )
        library.sf_level.restype = library.sf_levels.restype = c_char_p
        library.sf_set_level.argtypes = [c_char_p]
        library.sf_set_fork.argtypes = [c_void_p]
        self._library = library
        self._fork = _openmp_fork()
        library.sf_set_fork(self._fork)
        self.set_level(os.environ.get("SPARSEFLOW_LEVEL"))
        for name, types in KERNELS.items():
            setattr(self, name, self._kernel(name, types))
        for name, types in HELPERS.items():
            setattr(self, name, self._function(name, types, c_int64))

    def _function(self, name: str, types: str, result: type) -> Callable[..., int]:
        try:
            function = self._library[f"sf_{name}"]
        except AttributeError as error:
            raise SparseUnavailable(f"cannot use the core {self.path}: {error}") from error
        function.argtypes = [_TYPES[each] for each in types]
        function.restype = result
        return function

    def _kernel(self, name: str, types: str) -> Callable[..., None]:
        function = self._function(name, types, c_int)

        def call(*arguments: Any) -> None:
            if function(*arguments):
                raise MemoryError(f"no memory for the scratch space of {name}")

        return call

    def __getattr__(self, name: str) -> Any:
        """Refuse what the constructor did not set; it is here for type checkers."""
        raise AttributeError(name)

    @property
    def level(self) -> str:
        """The level in use."""
        return self._library.sf_level().decode()

    @property
    def levels(self) -> list[str]:
        """The levels built, best first."""
        return self._library.sf_levels().decode().split()

    @property
    def threaded(self) -> bool:
        """Whether torch's OpenMP runtime was found; else everything runs on one thread."""
        return self._fork is not None

    def set_level(self, name: str | None) -> None:
        """Use one level, or the best for ``None``.

        Raises:
            SparseUnavailable: for a level that was not built or that the machine cannot run.
        """
        status = self._library.sf_set_level(name.encode() if name else None)
        if status == 1:
            text = unknown("SPARSEFLOW_LEVEL", name or "", self.levels)
            raise SparseUnavailable(text)
        if status:
            raise SparseUnavailable(f"this machine cannot run the level {name!r}")


def _openmp_fork() -> int | None:
    """Return the address of GOMP_parallel as torch itself would call it."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            function = ctypes.CDLL(str(folder / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, c_void_p).value
    return None


def _folders() -> Iterator[Path]:
    """Yield where the core may be: next to the package, or, when edited in place, as installed."""
    yield Path(__file__).parents[1]
    with suppress(PackageNotFoundError):
        yield Path(str(distribution("sparseflow").locate_file("sparseflow/sparse")))


@functools.cache
def core() -> Core:
    """Return the core, loaded on the first call.

    Raises:
        SparseUnavailable: with the reason: not built, cannot be loaded, wrong level.
    """
    for folder in _folders():
        path = folder / "_core.so"
        if path.is_file():
            return Core(path)
    raise SparseUnavailable(
        "sparse execution is not available: the C++ core was not built; reinstall sparseflow "
        "with GCC or Clang available, or use masked dense execution"
    )


def describe() -> dict[str, Any]:
    """Describe the core: level in use, levels built, threads and path.

    Raises:
        SparseUnavailable: as :func:`core`.

    >>> sorted(describe())
    ['level', 'levels', 'path', 'threads']
    """
    loaded = core()
    threads = torch.get_num_threads() if loaded.threaded else 1
    return {
        "level": loaded.level,
        "levels": loaded.levels,
        "threads": threads,
        "path": str(loaded.path),
    }
