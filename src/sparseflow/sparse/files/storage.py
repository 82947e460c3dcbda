"""A model in one file, its weights by their non-zeros, that runs without the code that made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.errors import (
    MaskError,
    SparseUnavailable,
    SpecError,
    StoreError,
    brief,
    unknown,
)
from sparseflow.core.files import load_tensors, save_tensors
from sparseflow.core.wrappers import bare
from sparseflow.masks import Masks
from sparseflow.masks.state import NonZeros, State
from sparseflow.sparse.convert.conversion import Conversion
from sparseflow.sparse.convert.model import SparseModel, to_dense
from sparseflow.sparse.files.program import Program, build, describe
from sparseflow.sparse.layers.registry import SPARSE_FORMS, has_sparse_layer
from sparseflow.sparse.plan.predict import worthwhile

FORMAT = "sparseflow-model-1"
EXECUTIONS = ("auto", "dense", "sparse")

_DTYPES = {str(d): d for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


def save(
    path: Path | str,
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    example_input: Tensor,
) -> None:
    """Write a model to one safetensors file: architecture, masks, and non-zero weights.

    Masked weights take the space of their non-zeros: each value, and its
    position in about as many bits as its entropy. The architecture is stored as
    data, so the model may hold linear, convolution and batch norm layers, pooling,
    activation functions, flattening, additions and the like; it takes one
    tensor and returns one. What is stored is what it does in evaluation mode.

    Args:
        path: of the file.
        model: dense or truly sparse; it is left alone.
        masks: masks by parameter name; by default a weight of a layer that has a
            sparse form is active wherever it is not zero.
        example_input: an input, of which only shape and dtype are stored.

    Raises:
        StoreError: if the model has a part that a file cannot hold, or the file
            cannot be written.
        MaskError: if the masks do not match, or an inactive weight is not zero.

    Example:
        >>> import sparseflow as sf, tempfile
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> masks = sf.sparsify(net, density=0.1, pattern="constant_fan_in")
        >>> x = torch.randn(8, 64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/net.safetensors", net, masks, example_input=x)
        ...     back = load(f"{folder}/net.safetensors")
        >>> bool(torch.allclose(back(x), net(x), atol=1e-5))
        True
    """
    structure = model = bare(model)
    if isinstance(model, SparseModel):
        structure = model.dense_skeleton
    elif has_sparse_layer(model):
        structure = to_dense(model)
    given = _zeros(model) if masks is None else Masks(masks)
    write(Path(path), structure, State.of(model, given), example_input)


def load(path: Path | str, *, execution: str = "auto") -> nn.Module:
    """Read a model written by :func:`save` or ``sparseflow export``, in evaluation mode.

    Args:
        path: of the file.
        execution: ``sparse`` computes with the non-zeros alone wherever there is
            a sparse form, and never makes the dense weight; ``dense`` is plain
            PyTorch; ``auto`` is sparse if the compiled core is available, in
            the layers that this makes faster on an input like the example.

    Raises:
        StoreError: if the file is missing, damaged, or not such a model. Nothing
            that a file names is imported or evaluated. Or execution is ``sparse``
            and no weight has a sparse form.
        SpecError: if the execution is unknown.
        SparseUnavailable: if execution is ``sparse`` and the core is missing.
    """
    if execution not in EXECUTIONS:
        raise SpecError(unknown("execution", execution, EXECUTIONS))
    tensors, meta = load_tensors(Path(path))
    if meta.get("format") != FORMAT:
        raise StoreError(f"{path} holds no model written by sparseflow.save (no {FORMAT!r} mark)")
    try:
        state = State.read(tensors, meta.get("shapes"))
        program, example = _program(meta)
        _fill(program, state)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error
    conversion = _conversion(program, state, execution, example)
    names = [] if conversion is None else _chosen(conversion, execution)
    if execution == "sparse" and not names:
        raise StoreError(f"{path} holds no masked weight that has a sparse form: load it dense")
    named = dict(program.named_parameters())
    for name, weight in state.masked.items():
        if name not in names:
            named[name].data = _dense(name, weight)
    if conversion is None or not names:
        return program
    parts = {name: (state.masked[name].indices, state.masked[name].values) for name in names}
    return conversion.build(parts).eval()


def write(path: Path, structure: nn.Module, state: State, example: Tensor) -> None:
    """Write a model whose architecture and state are given separately.

    Args:
        path: of the file.
        structure: the dense model; its numbers are not looked at, so it may be
            on the meta device.
        state: its state.
        example: an input, of which only shape and dtype are stored.

    Raises:
        StoreError: if the model has a part that a file cannot hold, does not
            run on the example, or the file cannot be written.
    """
    program = describe(structure)
    used = {n for layer in program["layers"] for n in _names(structure, layer)}
    tensors, shapes = State(
        {n: weight for n, weight in state.masked.items() if n in used},
        {n: tensor for n, tensor in state.others.items() if n in used},
    ).tensors()
    described = {"shape": list(example.shape), "dtype": str(example.dtype)}
    meta = {"format": FORMAT, "program": program, "input": described, "shapes": shapes}
    _program(meta)
    save_tensors(path, tensors, meta)


def _names(structure: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}" for name in structure.get_submodule(path).state_dict()]


def _zeros(model: nn.Module) -> Masks:
    """Masks of the dense layers that have zeros."""
    weights = {
        f"{path}.weight".lstrip("."): module.get_parameter("weight").detach()
        for path, module in model.named_modules()
        if type(module) in SPARSE_FORMS
    }
    active = {name: weight != 0 for name, weight in weights.items()}
    return Masks({name: mask for name, mask in active.items() if not mask.all()})


def _program(meta: Mapping[str, Any]) -> tuple[Program, Tensor]:
    """The module without its numbers, and an input without numbers on which it was run."""
    program, given = build(meta.get("program")), meta.get("input")
    try:
        shape, dtype = given["shape"], _DTYPES[given["dtype"]]  # type: ignore[index]
        example = torch.empty(shape, dtype=dtype, device="meta")
        program.to(dtype)
        program(example)
    except Exception as error:  # torch raises many kinds for what does not fit
        raise StoreError(
            f"the model does not run on an input such as {given} ({brief(error)})"
        ) from error
    return program, example


def _fill(program: Program, state: State) -> None:
    """Give the module its numbers; masked weights have no memory of their own until realised."""
    named = dict(program.named_parameters())
    for name, weight in state.masked.items():
        if name not in named or named[name].shape != weight.shape:
            shape = tuple(weight.shape)
            raise StoreError(f"{name!r} of shape {shape} is not a weight of its layers")
    empty = {n: w.values.new_zeros(()).expand(w.shape) for n, w in state.masked.items()}
    try:
        program.load_state_dict({**state.others, **empty}, assign=True)
    except RuntimeError as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise StoreError(f"its weights do not fit its layers: {lines}") from error


def _conversion(
    program: Program, state: State, execution: str, example: Tensor
) -> Conversion | None:
    """The module on its way to sparse execution, if that is asked for and available."""
    if execution == "dense":
        return None
    try:
        return Conversion(program, state.masks(), example)
    except SparseUnavailable:
        if execution == "sparse":
            raise
        return None


def _chosen(conversion: Conversion, execution: str) -> list[str]:
    """Weights to hold sparse: all that can be, or those whose layers gain."""
    if execution == "sparse" or not conversion.names:
        return conversion.names
    try:
        return worthwhile(conversion)[0]
    except MaskError:  # none would be faster
        return []


def _dense(name: str, weight: NonZeros) -> Tensor:
    try:
        return weight.dense()
    except RuntimeError as error:  # out of memory
        shape = tuple(weight.shape)
        raise StoreError(
            f"{name!r} of shape {shape} cannot be made dense ({brief(error)})"
        ) from error
