"""What of a storage is stored together, and lies together again."""

from __future__ import annotations

import pytest
import torch

from aqua_client.errors import UnsupportedTensor
from aqua_client.integrations.modules.spans import spans_of


def moved(*tensors: torch.Tensor) -> int:
    """Moves all of them to a copy of their spans; how many there were."""
    spans = spans_of((str(number), one) for number, one in enumerate(tensors))
    copies = [span.content.clone() for span in spans]
    for span in spans:
        for view in span.views:
            view.empty()
    assert all(one.shape == (0,) for one in tensors if one.dtype is not torch.int8)
    for span, copy in zip(spans, copies, strict=True):
        for view in span.views:
            view.point_into(copy)
    return len(spans)


def test_a_view_and_its_base_are_one_span_and_share_memory_afterwards() -> None:
    """A write to one is seen in the other, as before."""
    base = torch.arange(24.0).reshape(4, 6)
    rows, transposed = base[1:3], base.t()
    expected = base.clone()
    assert moved(base, rows, transposed) == 1
    assert torch.equal(base, expected)
    assert torch.equal(rows, expected[1:3])
    assert torch.equal(transposed, expected.t())
    assert transposed.stride() == (1, 6)
    rows.zero_()
    assert base[1:3].eq(0).all()
    assert transposed[:, 1:3].eq(0).all()


def test_tensors_that_lie_beside_each_other_are_one_span_and_distant_ones_are_not() -> None:
    """One copy for a flat buffer, and no copy of what nobody named."""
    flat = torch.arange(1000, dtype=torch.float32)
    assert moved(flat[:100], flat[100:300]) == 1
    part = flat[100:104]
    before = part.data_ptr() % 64
    assert moved(part) == 1
    assert part.data_ptr() % 64 == before != 0
    first, last = flat[:100], flat[900:]
    spans = spans_of([("first", first), ("last", last)])
    assert [span.content.nbytes for span in spans] == [448, 416]  # aligned


def test_dtypes_of_all_sizes_in_one_storage_keep_their_places() -> None:
    """Whatever the first one's address is, each starts at a multiple of its size."""
    raw = torch.arange(256, dtype=torch.int16).view(torch.uint8)
    parts = [raw[6:10].view(torch.int16), raw[8:24].view(torch.float64), raw[3:5]]
    parts += [raw[32:64].view(torch.complex128)]
    expected = [part.clone() for part in parts]
    assert moved(*parts) <= 2
    assert all(
        torch.equal(part.view(torch.uint8), one.view(torch.uint8))
        for part, one in zip(parts, expected, strict=True)
    )


def test_odd_layouts_come_back_as_they_were() -> None:
    """Expanded, gapped, of no dimension; what has no elements has no span."""
    expanded, gapped = torch.randn(3, 1).expand(3, 4), torch.randn(8, 8)[::2, ::3]
    scalar, nothing = torch.tensor(2.5), torch.zeros(0, 4)
    expected = [one.clone() for one in (expanded, gapped, scalar)]
    strides = [one.stride() for one in (expanded, gapped, scalar)]
    assert moved(expanded, gapped, scalar) == 3
    assert [one.stride() for one in (expanded, gapped, scalar)] == strides
    assert all(map(torch.equal, (expanded, gapped, scalar), expected))
    assert spans_of([("nothing", nothing)]) == []


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.randn(3, 3).to_sparse(), "sparse"),
        (torch.empty(3, device="meta"), "meta"),
        (torch.randn(3, dtype=torch.complex64).conj(), "conj"),
        (torch.nn.parameter.UninitializedParameter(), "Uninitialized"),
    ],
)
def test_what_has_no_bytes_of_its_own_is_refused_by_name(tensor: torch.Tensor, why: str) -> None:
    """And why."""
    with pytest.raises(UnsupportedTensor, match=rf"layer\.odd can't be parked: .*{why}"):
        spans_of([("layer.odd", tensor)])
