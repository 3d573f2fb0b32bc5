"""What an object still remembers: every string that can be reached from it."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator


def strings_in(root: object, *, but: tuple[str, ...] = ()) -> set[str]:
    """All strings in *root*, in its attributes *but* those, and in what they hold."""
    found: set[str] = set()
    seen: set[int] = set()
    left: list[object] = [root]
    while left:
        thing = left.pop()
        if isinstance(thing, str):
            found.add(thing)
        elif id(thing) not in seen:
            seen.add(id(thing))
            left.extend(_parts(thing, but))
    return found


def _parts(thing: object, but: tuple[str, ...]) -> Iterable[object]:
    if isinstance(thing, dict):
        return [*thing, *thing.values()]
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return list(thing)
    if type(thing).__module__.startswith(("aqua_daemon", "tests")):
        return list(_attributes(thing, but))
    return ()


def _attributes(thing: object, but: tuple[str, ...]) -> Iterator[object]:
    names = (
        [field.name for field in dataclasses.fields(thing)]
        if dataclasses.is_dataclass(thing)
        else list(getattr(thing, "__dict__", ()))
    )
    for name in names:
        if name not in but:
            yield getattr(thing, name)
