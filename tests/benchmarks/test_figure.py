"""A figure says whether its goal is reached, and what it could not measure."""

from __future__ import annotations

from tests.benchmarks.figure import Figure, document, percentile, table


def figure(value: float | None, **more: float | str) -> Figure:
    return Figure(subject="s", name="n", value=value, unit="us", **more)  # type: ignore[arg-type]  # of both kinds


def test_a_goal_is_reached_at_its_bound_and_missed_beyond() -> None:
    """Either way round."""
    assert [figure(value, at_most=10.0).reached for value in (9.0, 10.0, 10.1)] == [
        True,
        True,
        False,
    ]
    assert [figure(value, at_least=10.0).reached for value in (9.9, 10.0)] == [False, True]


def test_what_has_no_goal_or_no_value_is_neither_reached_nor_missed() -> None:
    """It must not look like success."""
    assert figure(1.0).reached is None
    missing = figure(None, at_most=1.0, why_not="no server here")
    assert missing.reached is None
    assert missing.measured == "*not measured*: no server here"


def test_the_table_is_markdown_with_a_line_for_each_figure() -> None:
    """A missed goal is seen at a glance."""
    lines = list(table([figure(1234.5, at_most=10.0), figure(0.04, rival="copy 3 us")]))
    assert lines[2:] == [
        "| s: n | 1,234 us |  | at most 10 us | **no** |",
        "| s: n | 0.04 us | copy 3 us |  |  |",
    ]
    assert {line.count("|") for line in lines} == {6}


def test_the_result_file_says_what_was_reached() -> None:
    """So that nobody has to compare again."""
    (row,) = document([figure(5.0, at_most=10.0)])
    assert (row["value"], row["at_most"], row["reached"]) == (5.0, 10.0, True)


def test_a_percentile_lies_among_the_values() -> None:
    """Also of few."""
    assert percentile([1.0, 2.0, 3.0], 99) <= 3.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
