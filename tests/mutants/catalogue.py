"""All mutants."""

from __future__ import annotations

from tests.mutants.borrowers import BORROWERS
from tests.mutants.core import CORE
from tests.mutants.cuda import CUDA
from tests.mutants.edges import EDGES
from tests.mutants.elastic import ELASTIC
from tests.mutants.exchanges import EXCHANGES
from tests.mutants.links import LINKS
from tests.mutants.node import NODE
from tests.mutants.scheduling import SCHEDULING
from tests.mutants.serving import SERVING

MUTANTS = (
    *CORE,
    *ELASTIC,
    *BORROWERS,
    *EXCHANGES,
    *EDGES,
    *CUDA,
    *LINKS,
    *NODE,
    *SCHEDULING,
    *SERVING,
)
