"""What a grant costs the broker alone, without any process: among few leases, and among many."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.figure import Figure
from tests.core.measure_handle import FEW, MANY, Grants, grant_seconds

SUBJECT = "core"
SLOWER = 1.5


def measure() -> Iterator[Figure]:
    """Measure `Broker.handle`, in CPU time."""
    few, many = grant_seconds(Grants(leases=FEW), Grants(leases=MANY))
    yield Figure(
        subject=SUBJECT,
        name=f"a grant among {MANY:,} leases",
        value=many / few,
        unit=f"times one among {FEW:,}",
        rival=f"{many * 1e6:.1f} us and {few * 1e6:.1f} us",
        at_most=SLOWER,
    )
