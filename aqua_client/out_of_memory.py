"""When an allocation fails because a GPU's memory is lent: take it back, and try once more.

    @aqua_client.reclaim_on_oom("cuda:0")
    def step(batch): ...                       # run twice where it runs out of memory

    with aqua_client.reclaim_on_oom("cuda:0") as guard:
        output = guard.run(model, batch)       # the same, of one call
        loss = criterion(model(batch), target) # out of memory here: see below

What is run again must bear it: its effects of the first time stay. Nothing can run a `with` block
again, so there memory is taken back and the error goes on, with a note that says how much came.

Covers finding out what is missing, letting go of what the failed attempt left behind, and holding
what came back for a while. The reclaim itself is `producing`'s.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, ParamSpec, Protocol, Self, TypeVar, cast

from aqua_client.errors import AquaError, InvalidRequest
from aqua_client.producing import Producer, producer
from aqua_client.records import ReclaimOutcome, ReclaimResult
from aqua_client.settings import ClientSettings

# An attempt that runs again will want more than the one allocation that it failed at.
LEAST_BYTES = 2**30

# What came back is kept from borrowers for so long: the attempt that needs it takes it meanwhile.
HOLD_SECONDS = 30.0

GRANULE_BYTES = 2 * 2**20  # what CUDA, and torch above 10 MiB, round an allocation up to
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_TRIED = re.compile(r"Tried to allocate ([0-9]+(?:\.[0-9]+)?) (bytes|[KMGT]iB)")

_TURN = threading.Lock()

logger = logging.getLogger("aqua")

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")


def reclaim_on_oom(
    device: object = None,
    deadline: float = 2.0,
    *,
    least_bytes: int = LEAST_BYTES,
    errors: tuple[type[Exception], ...] = (),
    settings: ClientSettings | None = None,
) -> ReclaimOnOom:
    """A decorator, and a context manager, that takes lent memory back when there is too little.

        @aqua_client.reclaim_on_oom("cuda:0", deadline=2.0)
        def step(batch):
            return model(batch)

    *device*: as for `producer`, or a Producer; None: torch's current CUDA device. *deadline*: how
    many seconds borrowers have. *least_bytes*: at least so much is asked back, and at least what
    the error says was missing. *errors*: what counts as out of memory beside torch's own.

    Raises:
        InvalidRequest: the deadline or the bytes can't be.
    """
    if not (math.isfinite(deadline) and deadline > 0) or least_bytes < 1:
        msg = f"deadline={deadline!r}, least_bytes={least_bytes!r}: both must be over 0"
        raise InvalidRequest(msg)
    return ReclaimOnOom(device, deadline, least_bytes, errors, settings)


class ReclaimOnOom:
    """Costs nothing, and talks to nobody, until something runs out of memory."""

    def __init__(
        self,
        device: object,
        deadline: float,
        least_bytes: int,
        errors: tuple[type[Exception], ...],
        settings: ClientSettings | None,
    ) -> None:
        """As `reclaim_on_oom`, which checks."""
        self._device = device
        self._deadline = deadline
        self._least_bytes = least_bytes
        self._errors = errors
        self._settings = settings
        self._lock = threading.Lock()
        self._made: Producer | None = None
        self._holding: threading.Timer | None = None

    def __call__(self, function: Callable[ParametersT, ResultT]) -> Callable[ParametersT, ResultT]:
        """*function*, which is called a second time where it runs out of memory.

        Raises:
            InvalidRequest: it is a coroutine or a generator, which run after they were called.
        """
        kinds = (
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
        )
        if any(is_kind(function) for is_kind in kinds):
            msg = f"{function!r} runs after it was called: use run() on what it calls"
            raise InvalidRequest(msg)

        @functools.wraps(function)
        def guarded(*args: ParametersT.args, **kwargs: ParametersT.kwargs) -> ResultT:
            return self.run(function, *args, **kwargs)

        return guarded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and self._is_out_of_memory(error):
            self._make_room(error)

    def run(
        self,
        function: Callable[ParametersT, ResultT],
        *args: ParametersT.args,
        **kwargs: ParametersT.kwargs,
    ) -> ResultT:
        """What *function* returns. Where it runs out of memory it runs again, once.

        Not where nothing came back. Where it runs out of memory again, the first error is raised.
        """
        first = self._attempt(function, *args, **kwargs)
        if isinstance(first, _Returned):
            return first.value
        try:
            # Not before the failed attempt is over: until then its frames hold its tensors.
            result = self._make_room(first)
            if result is None or not result.freed_bytes:
                raise first
            second = self._attempt(function, *args, **kwargs)
            if isinstance(second, _Returned):
                return second.value
            first.add_note("it ran out of memory a second time all the same")
            del second
            raise first
        finally:
            del first  # it refers to this frame

    def close(self) -> None:
        """Let what was reclaimed be lent again. Idempotent; by itself it happens after 30 s."""
        with self._lock:
            made, self._made = self._made, None
            if self._holding is not None:
                self._holding.cancel()
        if made is not None:
            made.close()

    def _attempt(
        self,
        function: Callable[ParametersT, ResultT],
        *args: ParametersT.args,
        **kwargs: ParametersT.kwargs,
    ) -> _Returned[ResultT] | Exception:
        try:
            return _Returned(function(*args, **kwargs))
        except Exception as error:
            if not self._is_out_of_memory(error):
                raise
            return error

    def _is_out_of_memory(self, error: Exception) -> bool:
        torch = cast("_Torch | None", sys.modules.get("torch"))
        kinds = self._errors if torch is None else (*self._errors, torch.OutOfMemoryError)
        return isinstance(error, kinds)

    def _make_room(self, error: Exception) -> ReclaimResult | None:
        """Free what the attempt left behind and take lent memory back; the error notes what came."""
        _let_go(error)
        nbytes = max(self._least_bytes, missing_bytes(error))
        try:
            with _in_turn(self._deadline):
                result = self._producer().reclaim(nbytes, self._deadline)
        except AquaError as failure:
            error.add_note(f"no memory was reclaimed: {failure}")
            logger.warning("out of memory, and none could be reclaimed: %s", failure)
            return None
        why = f": {result.error}" if result.error else ""
        error.add_note(f"{result.freed_bytes} bytes were reclaimed ({result.outcome}{why})")
        is_bad = result.outcome in {ReclaimOutcome.UNREACHABLE, ReclaimOutcome.REFUSED}
        logger.log(
            logging.WARNING if is_bad else logging.INFO,
            "out of memory: of %d bytes asked for %d were reclaimed in %.3f s (%s)",
            *(result.asked_bytes, result.freed_bytes, result.seconds, result.outcome),
        )
        return result

    def _producer(self) -> Producer:
        if isinstance(self._device, Producer):
            return self._device
        with self._lock:
            if self._made is None:
                device = "cuda" if self._device is None else self._device
                self._made = producer(device, settings=self._settings)
            if self._holding is not None:
                self._holding.cancel()
            self._holding = threading.Timer(HOLD_SECONDS, self.close)
            self._holding.daemon = True
            self._holding.start()
            return self._made


@contextmanager
def _in_turn(seconds: float) -> Iterator[None]:
    """Threads that run out at once lack the sum of it, and a reclaim counts what others wait for.

    No turn is waited for longer: in a child that was forked meanwhile it never comes.
    """
    has_turn = _TURN.acquire(timeout=seconds)
    try:
        yield
    finally:
        if has_turn:
            _TURN.release()


def missing_bytes(error: Exception) -> int:
    """What *error* says could not be allocated, as large as it may be; 0 where it does not say."""
    found = _TRIED.search(str(error))
    if found is None:
        return 0
    unit = _UNITS[found[2]]
    # Two digits after the point are shown: what was asked may have been half of the last one more.
    nbytes = math.ceil(float(found[1]) * unit + 0.005 * unit)
    return -(-nbytes // GRANULE_BYTES) * GRANULE_BYTES


def _let_go(error: Exception) -> None:
    """Drop what the failed attempt's frames hold, and give torch's cache back to the driver."""
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__
    torch = cast("_Torch | None", sys.modules.get("torch"))
    if torch is not None:
        torch.cuda.empty_cache()  # nothing, where CUDA is not used


@dataclass(frozen=True, slots=True)
class _Returned(Generic[ResultT]):
    """An attempt that came to its end."""

    value: ResultT


class _Cuda(Protocol):
    def empty_cache(self) -> None: ...


class _Torch(Protocol):
    OutOfMemoryError: type[Exception]

    @property
    def cuda(self) -> _Cuda: ...
