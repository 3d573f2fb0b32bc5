"""Which tensors can be parked, and what shape, strides and dtype they come back with."""

from __future__ import annotations

import warnings

import pytest
import torch

from aqua_client.errors import InvalidRequest, UnsupportedTensor
from aqua_client.layouts import check_out, layout_of

DENSE = {
    "contiguous": torch.zeros(2, 3, 4),
    "transposed": torch.zeros(2, 3, 4).transpose(0, 2),
    "channels last": torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "0-d": torch.tensor(1.0),
    "empty": torch.zeros(0, 3),
    "one row": torch.zeros(5, 4)[2:3],
    "size one with a long stride": torch.zeros(5, 4)[:, :1].t()[:, :1],
}
OTHERS = {
    "every second": torch.zeros(8)[::2],
    "column": torch.zeros(4, 4)[:, 1],
    "expanded": torch.zeros(1, 3).expand(4, 3),
    "overlapping": torch.zeros(5).as_strided((3, 3), (1, 1)),
    "part of a transposed": torch.zeros(6, 6).t()[1:3],
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_tensors_keep_their_strides(name: str) -> None:
    """As with clone(memory_format=torch.preserve_format)."""
    tensor = DENSE[name]
    layout = layout_of(tensor)
    assert layout.shape == tensor.shape
    assert layout.stride == tensor.stride()
    assert layout.nbytes == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("name", OTHERS)
def test_other_tensors_become_contiguous(name: str) -> None:
    """What has gaps, or shares memory among its elements, is stored without."""
    tensor = OTHERS[name]
    layout = layout_of(tensor)
    assert layout.stride == tensor.contiguous().stride()
    assert layout.nbytes == tensor.numel() * 4


class Marked(torch.Tensor):
    """A subclass, which may keep anything beside its bytes."""


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def sparse_csr() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(3).to_sparse_csr()


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: [1.0, 2.0], "builtins.list"),
        (lambda: None, "NoneType"),
        (lambda: torch.zeros(2).numpy(), "numpy.ndarray"),
        (lambda: torch.eye(3).to_sparse(), "to_dense"),
        (sparse_csr, "to_dense"),
        (lambda: torch.zeros(3, device="meta"), "meta"),
        (quantised, "int_repr"),
        (nested, "nested"),
        (lambda: torch.zeros(3).as_subclass(Marked), "Marked"),
        (lambda: torch.zeros(4, dtype=torch.uint8).view(torch.quint8), "int_repr"),
    ],
)
def test_what_has_no_dense_bytes_is_refused_with_the_remedy(make: object, says: str) -> None:
    """The error is a TypeError and a ValueError, and says what to do."""
    assert callable(make)
    with pytest.raises(UnsupportedTensor, match=says) as caught:
        layout_of(make())
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_a_parameter_is_a_tensor() -> None:
    """And its need of a gradient is remembered."""
    assert layout_of(torch.nn.Parameter(torch.zeros(3))).requires_grad


def test_equal_layouts_are_worked_out_once() -> None:
    """One model has few layouts; each costs as much as a small copy."""
    assert layout_of(torch.zeros(7, 5)) is layout_of(torch.ones(7, 5))


@pytest.mark.parametrize(
    ("out", "says"),
    [
        (torch.zeros(3, 2), "shape"),
        (torch.zeros(2, 3, dtype=torch.float64), "float64"),
        (torch.zeros(2, 3, device="meta"), "meta"),
        (torch.zeros(1, 3).expand(2, 3), "share memory"),
        (torch.zeros(4).as_strided((2, 3), (1, 1)), "share memory"),
        (torch.zeros(2, 3).to_sparse(), "dense"),
        ([0.0], "dense"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out: object, says: str) -> None:
    """Before anything is written to it."""
    with pytest.raises(InvalidRequest, match=says):
        check_out(out, layout_of(torch.zeros(2, 3)))


@pytest.mark.parametrize(
    "out", [torch.zeros(3, 2).t(), torch.zeros(2, 6)[:, ::2], torch.zeros(2, 3)]
)
def test_an_out_may_have_strides_of_its_own(out: torch.Tensor) -> None:
    """As long as no two elements share memory."""
    assert check_out(out, layout_of(torch.zeros(2, 3))) is out
