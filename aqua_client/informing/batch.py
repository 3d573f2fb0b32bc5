"""An engine that works in batches: what the largest of them leaves free can be lent."""

from __future__ import annotations

from aqua_client.errors import InvalidRequest
from aqua_client.informing.decisions import (
    BatchFigures,
    Decision,
    Figures,
    Nothing,
    check_figures,
)
from aqua_client.informing.margins import Margins, Spare


class BatchInformer:
    """Offers what the largest batch leaves free, less what is retained; goes on looking.

    The paper's informer offers once, after the first batch of the largest size: free bytes less
    5 GiB, if 10 GiB are free. This one offers the same, after `settle_seconds` of such batches, and
    follows the engine from then on.

    >>> informer = BatchInformer()
    >>> seen = BatchFigures(free_bytes=50 * 2**30, batch_size=8, total_bytes=80 * 2**30)
    >>> informer.decide(seen, offered_bytes=0, now=0.0)
    Nothing(reason='settling')
    >>> informer.decide(seen, offered_bytes=0, now=30.0).nbytes // 2**30
    45
    """

    def __init__(self, margins: Margins | None = None, *, largest_batch: int | None = None) -> None:
        """*largest_batch*: nothing is offered before one of that size; None: the largest so far."""
        self._spare = Spare(margins or Margins())
        self._largest_batch = largest_batch or 0

    def decide(self, figures: Figures, *, offered_bytes: int, now: float) -> Decision:
        """See `Informer.decide`."""
        if not isinstance(figures, BatchFigures):
            msg = f"a BatchInformer is told BatchFigures, not {type(figures).__name__}"
            raise InvalidRequest(msg)
        check_figures(figures)
        if figures.batch_size < self._largest_batch:
            # It says nothing of what a larger one would leave, unless it leaves too little already.
            short = self._spare.shortage(figures.free_bytes, offered_bytes=offered_bytes)
            return short or Nothing(reason="smaller_batch")
        if figures.batch_size > self._largest_batch:
            self._largest_batch = figures.batch_size
            self._spare.disturb()
        return self._spare.look(figures.free_bytes, offered_bytes=offered_bytes, now=now)
