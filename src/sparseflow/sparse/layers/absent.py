"""What stands for the dense weight that a truly sparse layer does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparseflow.core.errors import KernelError

_FACTS: set[Any] = {
    *(
        getattr(Tensor, name).__get__
        for name in (
            *("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf"),
            *("itemsize", "is_cpu", "is_cuda", "is_meta", "is_sparse", "is_quantized"),
        )
    ),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.element_size),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__),
}


class AbsentWeight(Tensor):
    """Shape, dtype and device of a weight that exists as non-zeros alone.

    Models read these of ``layer.weight`` (transformers' T5 and ViT cast their inputs to
    its dtype). Whatever else is done with it is refused, writing included, since it
    would be lost.
    """

    @staticmethod
    def __new__(cls, shape: torch.Size, values: Tensor) -> AbsentWeight:
        """Stand for the weight of this shape whose non-zeros are ``values``."""
        facts = {"dtype": values.dtype, "device": values.device}
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, **facts, requires_grad=values.requires_grad
        )

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer what is asked of shape, dtype and device, and nothing else."""
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise KernelError(
            f"{_name(func)} of the weight of a truly sparse layer, which has its non-zeros alone: "
            "use layer.values (.grad, .requires_grad_) and layer.indices(), or a copy, "
            "layer.dense_weight(); or leave the layer's mask out, and it stays dense"
        )

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # what reaches it past __torch_function__
        """Refuse."""
        return cls.__torch_function__(func, types, args, kwargs)

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Show what there is."""
        return f"AbsentWeight(shape={tuple(self.shape)}, dtype={self.dtype})"


def _name(func: Any) -> str:
    """What a function is called; a property by its own name, not that of its getter."""
    name = getattr(func, "__name__", str(func))
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", name) if name in ("__get__", "__set__") else name
