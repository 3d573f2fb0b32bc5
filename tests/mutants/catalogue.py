"""All mutants."""

from __future__ import annotations

from tests.mutants.core import CORE
from tests.mutants.edges import EDGES

MUTANTS = (*CORE, *EDGES)
