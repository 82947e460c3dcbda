"""A device in Python, to prove without a GPU where tensors lie and when the host waits for them.

Its tensors hold their values in CPU tensors. As on a GPU, an operation on tensors of two devices
is an error (but for single numbers and indices), and what takes a value to the host is noted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
WAITS = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2"}
MIXED = {"_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take what they are given from the host; copies, and indices, are noted."""

waited: list[str] = []
_libraries: list[torch.library.Library] = []
"""Registrations end with the object that made them."""


class _Plain(type(Tensor)):
    """To those who compare types it is no subclass: a tensor on a GPU is none either."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is Tensor

    def __hash__(cls) -> int:
        return hash(Tensor)


class Pretended(Tensor, metaclass=_Plain):
    """A tensor on the device; ``raw`` has its values."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "Pretended":
        made = Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        waited.append("tolist")
        return self.raw.tolist()

    def __format__(self, how: str) -> str:
        return format(self.item() if how else str(self.raw), how)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert a tensor on {NAME} to numpy: copy it to the host first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carry_out(func, args, kwargs or {})


def carry_out(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what is asked of the device."""
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, Pretended)]
    target, name = kwargs.get("device"), func.overloadpacket.__name__
    kind = None if target is None else torch.device(target).type
    if not there and kind != NAME:
        return func(*args, **kwargs)
    here = [t for t in tensors if not isinstance(t, Pretended) and t.ndim]
    if there and here and name not in MIXED:
        raise RuntimeError(f"{func}: expected all tensors on one device, found cpu and {NAME}")
    # Of a copy that need not be waited for the memory is taken to be page-locked.
    copied = name == "_to_copy" and not kwargs.get("non_blocking")
    moved = copied and (kind == "cpu" or not there)
    if name in WAITS or (there and here) or moved or _counts(name, args):
        waited.append(name)
    args, kwargs = pytree.tree_map(lambda t: getattr(t, "raw", t), (args, kwargs))
    if kind == NAME:
        kwargs["device"] = torch.device("cpu")
    out = func(*args, **kwargs)
    if kind == "cpu" or (name == "copy_" and not isinstance(tensors[0], Pretended)):
        return out
    given = {id(t.raw): t for t in there}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return given[id(value)] if id(value) in given else Pretended(value)

    return pytree.tree_map(wrapped, out)


def _counts(name: str, args: Any) -> bool:
    """Say whether a mask is an index, whose True entries have to be counted first.

    Setting them all to one number takes no counting.
    """
    if name not in MIXED or not name.startswith(("index", "_index")):
        return False
    masks = [t for t in args[1] if t is not None and t.dtype == torch.bool]
    return bool(masks) and (name == "index" or args[2].numel() > 1)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carry_out(func, args, kwargs or {})


def _register() -> torch.library.Library:
    """Let the device exist for what is below modes: ``torch.tensor(..., device=...)``."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")

    def empty_strided(size: Any, stride: Any, dtype: torch.dtype, **_: Any) -> Tensor:
        return Pretended(torch.empty_strided(size, stride, dtype=dtype))

    def copy(tensor: Pretended, source: Tensor, non_blocking: bool = False) -> Tensor:
        waited.append("copy_")
        tensor.raw.copy_(source)
        return tensor

    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("copy_", copy, "PrivateUse1")
    return library


@cache
def device() -> torch.device:
    """The device; it exists from the first call on."""
    _libraries.append(_register())
    return torch.device(NAME, 0)


@contextmanager
def pretending() -> Iterator[list[str]]:
    """Let the device work; yields the names of operations that the host waited for."""
    device()
    waited.clear()
    with _Mode():
        yield waited
