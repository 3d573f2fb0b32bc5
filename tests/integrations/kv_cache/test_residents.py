"""Which layers stay: pure bookkeeping, told by the order in which a model needs them."""

from __future__ import annotations

import pytest

from aqua_client.integrations.kv_cache.residents import Residents


class Layer:
    """Notes what it is told."""

    def __init__(self, residents: Residents) -> None:
        self.residents = residents
        self.is_here = False
        self.arrivals = 0
        self.number = residents.add(self)

    def offload(self) -> None:
        self.is_here = False

    def prefetch(self) -> None:
        if not self.is_here:
            self.arrivals += 1
            self.is_here = True
            self.residents.enter(self.number)

    def use(self) -> None:
        self.residents.use(self.number)
        self.prefetch()
        self.residents.prefetch_next()


def passes(limit: int | None, count: int, *, times: int) -> tuple[list[Layer], int]:
    """So many passes over so many layers; the layers, and the most that were ever here."""
    residents = Residents(limit)
    layers = [Layer(residents) for _ in range(count)]
    most = 0
    for _ in range(times):
        for layer in layers:
            layer.use()
            assert layer.is_here
            most = max(most, sum(one.is_here for one in layers))
    return layers, most


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (2, 2), (4, 4), (6, 6), (7, 6), (None, 6)])
def test_at_most_so_many_are_here(limit: int | None, most: int) -> None:
    """The one that is used always is."""
    assert passes(limit, 6, times=5)[1] == most


def test_with_room_for_two_the_next_one_is_always_ahead() -> None:
    """Each comes once a pass, as its turn comes nearer."""
    layers, _ = passes(2, 6, times=10)
    assert sum(layer.arrivals for layer in layers) == pytest.approx(60, abs=2)


def test_with_room_for_more_the_rest_stays() -> None:
    """Of six layers two stay, and four come and go through two places."""
    layers, _ = passes(4, 6, times=10)
    assert sum(layer.arrivals for layer in layers) <= 6 + 4 * 9 + 2


def test_a_layer_that_cannot_leave_stays_counted() -> None:
    """An error of its own comes through, and it is asked again the next time."""
    residents = Residents(1)
    asked: list[int] = []

    class Stuck(Layer):
        def offload(self) -> None:
            asked.append(self.number)
            raise MemoryError

    layers = [Stuck(residents), Stuck(residents)]
    residents.use(0)
    for _ in range(2):
        with pytest.raises(MemoryError):
            residents.use(1)
    assert asked == [0, 0]
    assert [layer.number for layer in layers] == [0, 1]
