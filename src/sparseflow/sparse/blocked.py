"""What torch itself can do on blocked tensors: the batch's 16 lanes are one more dimension."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparseflow.sparse.chain import BLOCK, UNBLOCK, run
from sparseflow.sparse.kernels import LANES

Pair = tuple[int, int]


def to_blocked(x: Float[Tensor, " n *rest"]) -> Float[Tensor, "nb *rest 16"]:
    """Change to the blocked layout, padding the batch with zeros; differentiable."""
    return run((BLOCK,), (), x.shape[0], x)


def from_blocked(x: Float[Tensor, "nb *rest 16"], n: int) -> Float[Tensor, " n *rest"]:
    """Change back to the first ``n`` plain examples; differentiable."""
    return run((UNBLOCK,), (), n, x)


def avg_pool(
    x: Float[Tensor, "nb c h w 16"],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Average pooling in height and width."""
    return functional.avg_pool3d(
        x, (*kernel, 1), (*stride, 1), (*padding, 0), ceil_mode, count_include_pad, divisor
    )


def max_pool_any(
    x: Float[Tensor, "nb c h w 16"],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> Tensor:
    """Max-pooling of the kinds that the kernels do not know."""
    return functional.max_pool3d(
        x, (*kernel, 1), (*stride, 1), (*padding, 0), (*dilation, 1), ceil_mode
    )


def adaptive_avg_pool(x: Float[Tensor, "nb c h w 16"], height: int, width: int) -> Tensor:
    """Average pooling to a fixed size."""
    if (height, width) == (1, 1):
        return x.mean((2, 3), keepdim=True)
    return functional.adaptive_avg_pool3d(x, (height, width, LANES))
