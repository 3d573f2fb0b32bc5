"""How much of its GPU an engine can spare, decided from figures of its own.

    informer = LlmInformer()
    decision = informer.decide(figures, offered_bytes=0, now=time.monotonic())

Pure: no torch, no call, no clock. What comes in are figures and times, what comes out is a decision
with its reason; `reporting` carries it out. Nothing here knows what is lent: an offer is what may
be lent at most.
"""

from aqua_client.informing.batch import BatchInformer
from aqua_client.informing.decisions import (
    BatchFigures,
    Decision,
    Figures,
    Informer,
    Lend,
    LlmFigures,
    Nothing,
    Reclaim,
)
from aqua_client.informing.llm import EARLIER, PAPER, LlmInformer, LlmThresholds
from aqua_client.informing.margins import GIB, Margins

__all__ = [
    "EARLIER",
    "GIB",
    "PAPER",
    "BatchFigures",
    "BatchInformer",
    "Decision",
    "Figures",
    "Informer",
    "Lend",
    "LlmFigures",
    "LlmInformer",
    "LlmThresholds",
    "Margins",
    "Nothing",
    "Reclaim",
]
