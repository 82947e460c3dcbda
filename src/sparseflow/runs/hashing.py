"""The identity of a run: the hash of everything that determines it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from sparseflow.core.code import Code
from sparseflow.core.values import code_in
from sparseflow.data import DATA
from sparseflow.models import MODELS
from sparseflow.runs.spec import RunSpec, ancestors, essential

NUMERICS = 1
"""Raise it when a mended bug changes results: old runs are then not reused."""

NAMELESS = ("recipe", "resume")
"""Fields that do not enter the hash."""


def identity(spec: RunSpec, code: Sequence[Code] | None = None) -> str:
    """Hash of everything that determines the run, its parents and the user's code included.

    The recipe's name does not enter, nor does ``train.resume``, nor a field that
    has its default: a new field with a default keeps old runs valid. Equal
    specifications have one identity.

    Args:
        spec: the run.
        code: source files that it rests on; by default those loaded here.

    Raises:
        SpecError: if a method or an initialisation has no name, or its code is not
            loaded.
    """
    digests = tuple(sorted(each.digest for each in (code_of_run(spec) if code is None else code)))
    try:
        return _hash(spec, NUMERICS, digests)
    except TypeError:  # made by hand, with a list in the place of a tuple
        return _hash.__wrapped__(spec, NUMERICS, digests)


@lru_cache(maxsize=2**16)
def _hash(spec: RunSpec, numerics: int, code: tuple[str, ...]) -> str:
    """Hash as above, kept: a sweep asks for each many times."""
    return _digest(essential(spec, NAMELESS), numerics, code)


def _digest(spec: Any, numerics: int, code: tuple[str, ...]) -> str:
    content = {"numerics": numerics, "spec": spec} | ({"code": code} if code else {})
    text = msgspec.json.encode(content, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


def identity_of_data(data: Any, code: Sequence[Code]) -> str:
    """Identity of what :func:`as_data` wrote, as it stands: nothing of it is read as a value."""
    digests = tuple(sorted(each.digest for each in code))
    return _digest(_nameless(data), NUMERICS, digests)


def _nameless(data: Any) -> Any:
    """Leave out what does not enter the hash, here and in the runs within."""
    named = {name: value for name, value in data.items() if name != "recipe"}
    for name, value in named.items():
        if name == "train" and isinstance(value, dict):
            named[name] = {n: v for n, v in value.items() if n != "resume"}
        elif name in ("mask", "weights") and isinstance(value, dict) and "run" in value:
            named[name] = {**value, "run": _nameless(value["run"])}
    return named


def code_of_run(spec: RunSpec) -> tuple[Code, ...]:
    """Source files of the user's that a run and its ancestors rest on, each once.

    Raises:
        SpecError: if one is not loaded, or cannot be read.
    """
    codes: dict[str, Code] = {}
    for run in (*ancestors(spec), spec):
        parts = [*code_in(run.method), *code_in(run.init)]
        for registry, name in ((MODELS, run.model.name), (DATA, run.data.name)):
            parts += registry.entry(name).code
        codes |= {code.digest: code for code in parts}
    return tuple(sorted(codes.values()))
