"""Code of the user's own: loaded by name or file, and identified by the digest of its source.

A run that uses such code must not be taken for one of older code, so the digest
enters the run's identity. Source text, not a path, is what travels to workers:
a file need not exist on another machine.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sparseflow.core.errors import SpecError, brief

ENTRY_POINTS = "sparseflow"
"""Group under which installed packages register what is theirs."""


class Code(NamedTuple):
    """One source file.

    Attributes:
        file: its name, for people; not part of any identity.
        digest: first 16 hexadecimal digits of the SHA-256 of its text.
    """

    file: str
    digest: str


class UserModule(NamedTuple):
    """What was asked for with ``--use``.

    Attributes:
        module: name under which it is imported.
        path: of the file; empty for an installed module.
        text: of the file.
    """

    module: str
    path: str = ""
    text: str = ""


_USED: dict[str, UserModule] = {}
_SEEN: WeakKeyDictionary[Any, Code] = WeakKeyDictionary()
"""Source of each class and function as it was when first asked for, right after it was made:
a file that changes later does not change what was loaded from it."""


def use(name: str | Path) -> None:
    """Load a file of Python or an installed module, so that what it registers is known.

    Args:
        name: ``mine.py``, ``path/to/mine.py`` or ``package.module``.

    Raises:
        SpecError: if it does not exist, fails to import, or has the name of
            another module that is loaded already.

    Example:
        >>> use("json.tool")  # a module of your own, which registers what is in it
        >>> used()[-1].module
        'json.tool'
    """
    text = str(name)
    if not text.endswith(".py"):
        load(UserModule(text))
        return
    path = Path(text).resolve()
    if not path.stem.isidentifier() or path.stem in sys.stdlib_module_names:
        raise SpecError(
            f"--use {text}: {path.stem!r} is not free as the name of a module: rename it"
        )
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--use {text} cannot be read: {brief(error)}") from error
    load(UserModule(path.stem, str(path), source))


def load(source: UserModule) -> None:
    """Import what :func:`use` found, also in another process."""
    before = _USED.get(source.module)
    if before == source:
        return
    _USED[source.module] = source  # what it registers asks for its text at once
    try:
        if source.path:
            _execute(source)
        else:
            importlib.import_module(source.module)
    except BaseException as error:
        if before is None:
            del _USED[source.module]
        else:
            _USED[source.module] = before
        if isinstance(error, SpecError) or not isinstance(error, Exception):
            raise
        where = source.path or source.module
        raise SpecError(f"--use {where} fails to import: {brief(error)}") from error


def used() -> tuple[UserModule, ...]:
    """Everything loaded so far, for a worker process to :func:`load`."""
    return tuple(_USED.values())


def to_use(codes: Iterable[Code]) -> tuple[str, ...]:
    """What ``--use`` is told to load these sources again: files by their names, and modules."""
    digests = {code.digest for code in codes}
    if not digests:
        return ()
    return tuple(
        Path(source.path).name if source.path else source.module
        for source in used()
        if not source.path or digest(source.text) in digests
    )


def load_all(sources: Iterable[UserModule]) -> None:
    """Import what another process uses."""
    for source in sources:
        load(source)


@cache
def load_installed() -> None:
    """Import what installed packages offer under the entry points of this package, once.

    Raises:
        SpecError: naming the entry point that fails.
    """
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            text = f"entry point {point.name} = {point.value} fails to import: {brief(error)}"
            raise SpecError(text) from error


def code_of(thing: type | Callable[..., Any]) -> tuple[Code, ...]:
    """Source files that define a class (with its bases) or a function; none for our own.

    Raises:
        SpecError: if the source cannot be read, as of what is typed at a prompt.
    """
    owners = thing.__mro__ if isinstance(thing, type) else (inspect.unwrap(thing),)
    codes = (_code(owner) for owner in owners if not _trusted(owner.__module__))
    return tuple({code.digest: code for code in codes}.values())


def home_of(thing: type | Callable[..., Any]) -> str:
    """Where a class or function comes from: a path, or a module's name; empty for our own."""
    owner = thing if isinstance(thing, type) else inspect.unwrap(thing)
    name = owner.__module__
    if _trusted(name):
        return ""
    used_here = _USED.get(name)
    return (used_here.path if used_here else "") or getattr(sys.modules.get(name), "__file__", name)


def _trusted(module: str) -> bool:
    """Say whether a module is ours, the language's or of a library that bases of ours come from.

    Those are identified by version, not by digest.
    """
    if module in _USED:
        return False
    root = module.partition(".")[0]
    return root in ("sparseflow", "torch", "msgspec") or (
        root in sys.stdlib_module_names and root != "__main__"
    )


def _code(owner: Any) -> Code:
    if owner in _SEEN:
        return _SEEN[owner]
    name = owner.__module__
    try:
        if name in _USED and _USED[name].path:
            path, text = _USED[name].path, _USED[name].text
        else:
            path = inspect.getsourcefile(sys.modules[name]) or ""
            text = Path(path).read_text(encoding="utf-8")
    except (KeyError, TypeError, OSError) as error:
        raise SpecError(
            f"the source of {owner.__qualname__} (module {name}) cannot be read: a run needs it "
            "in a file, loaded with --use FILE.py or sf.use"
        ) from error
    _SEEN[owner] = Code(Path(path).name, digest(text))
    return _SEEN[owner]


def digest(text: str) -> str:
    """Digest of a source text.

    >>> digest("")
    'e3b0c44298fc1c14'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _execute(source: UserModule) -> None:
    loaded = sys.modules.get(source.module)
    if loaded is not None and getattr(loaded, "__file__", None) != source.path:
        raise SpecError(
            f"--use {source.path}: a module named {source.module} is loaded already; "
            "rename the file"
        )
    module = ModuleType(source.module)
    module.__file__ = source.path
    sys.modules[source.module] = module
    try:
        exec(compile(source.text, source.path, "exec"), module.__dict__)  # noqa: S102  (asked for)
    except BaseException:
        if loaded is None:
            del sys.modules[source.module]
        else:
            sys.modules[source.module] = loaded
        raise
