"""Open registries: what can be named in a specification, and who defined it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sparseflow.core.code import Code, code_of, home_of, load_installed
from sparseflow.core.errors import SpecError, unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """Something that has a name.

    Attributes:
        name: under which it is registered.
        value: the thing itself.
        made_by: class or function that defines it.
        home: where that comes from; empty for what comes with this package.
        facts: what else was said when it was registered.
    """

    name: str
    value: T
    made_by: Callable[..., Any] | type
    home: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> tuple[Code, ...]:
        """Source files that define it; none for what comes with this package.

        Raises:
            SpecError: if a source cannot be read.
        """
        return code_of(self.made_by)


class Registry(Mapping[str, T]):
    """Things of one sort by name, in the order in which they were registered.

    A name that is not there is looked for in installed packages, once, before
    it is refused.

    Attributes:
        sort: what they are, for people, such as ``method``.
        way: how a user makes one known.
    """

    def __init__(self, sort: str, way: str) -> None:
        """Begin empty."""
        self.sort: str = sort
        self.way: str = way
        self._entries: dict[str, Entry[T]] = {}

    def add(self, name: str, value: T, made_by: Callable[..., Any] | type, **facts: Any) -> None:
        """Register a value.

        Args:
            name: its name; the same file may register it again.
            value: what the name stands for.
            made_by: the class or function whose source defines it.
            facts: anything else that callers need to know of it.

        Raises:
            SpecError: if the name is taken by code of another file, or is not a valid name.
        """
        if not name or not all(part.isidentifier() for part in name.replace("-", "_").split(".")):
            raise SpecError(f"{self.sort} name {name!r} must be letters, digits, - and _")
        home, before = home_of(made_by), self._entries.get(name)
        if before is not None and before.home != home:
            owner = before.home or "sparseflow"
            raise SpecError(f"{self.sort} {name!r} is registered by {owner}: choose another name")
        with suppress(SpecError):  # what has no source serves in a loop, and is refused in a run
            code_of(made_by)
        self._entries[name] = Entry(name, value, made_by, home, facts)

    def entry(self, name: str) -> Entry[T]:
        """Return what a name stands for, with what is known of it.

        Raises:
            SpecError: if it is unknown, with a suggestion and the way to make it known.
        """
        if name not in self._entries:
            load_installed()
        if name not in self._entries:
            raise SpecError(f"{unknown(self.sort, name, self._entries)}; {self.way}")
        return self._entries[name]

    def entries(self) -> list[Entry[T]]:
        """All entries, those of installed packages included."""
        load_installed()
        return list(self._entries.values())

    def __getitem__(self, name: str) -> T:
        return self.entry(name).value

    def get(self, name: str, default: Any = None) -> Any:
        """Return what a name stands for, or the default."""
        entry = self._entries.get(name) if name in self else None
        return default if entry is None else entry.value

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_installed()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
