"""Up to how many bytes a copy keeps the interpreter while it moves them.

Who lets go of it for a copy has to get it back. Mostly nobody has taken it, and torch's copies may
use several threads; but while a slab is emptied the library's thread does its books in between, and a
caller of `fetch` would wait for these longer than for its bytes. So more is copied without letting go
meanwhile. That thread then waits for its turn, as beside any that computes in Python: `pace`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from aqua_client.while_any import WhileAny

# So many bytes `memmove` copies as quickly as torch does, without its preparations.
PLAIN_BYTES = 128 * 2**10

# A twentieth of a millisecond where the pages are there, in which nobody else computes in Python.
BESIDE_MOVES_BYTES = 2**20


class HeldCopies(WhileAny):
    """One a process, as there is one interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self.most_bytes = PLAIN_BYTES

    def beside_moves(self) -> AbstractContextManager[None]:
        """Some thread of the library's empties a slab."""
        return self.within()

    def changed(self, *, is_any: bool) -> None:
        """As long as any does."""
        self.most_bytes = BESIDE_MOVES_BYTES if is_any else PLAIN_BYTES


HELD_COPIES = HeldCopies()
