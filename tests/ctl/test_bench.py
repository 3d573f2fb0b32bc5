"""What `aquactl bench links` says: tables with rows from and columns to, sums, and why not."""

from __future__ import annotations

import json

from aqua_daemon.core.link_figures import HOST, LinkSample
from aqua_daemon.ctl.bench import LinkBench, Measured, Sum, document, tables

KIB, MIB = 2**10, 2**20
GPUS = ("SHM-0", "SHM-1", "SHM-2")


def link(gigabytes_per_second: float, latency_seconds: float = 1e-5) -> Measured:
    return Measured(
        samples=tuple(
            LinkSample(nbytes=nbytes, seconds=latency_seconds + nbytes / gigabytes_per_second / 1e9)
            for nbytes in (64 * KIB, 64 * MIB)
        )
    )


def bench() -> LinkBench:
    """Each link of its own speed; the last GPU has no way to the others, nor has host memory."""
    links = {
        ("SHM-0", "SHM-1"): link(100.0),
        ("SHM-1", "SHM-0"): link(50.0),
        ("SHM-0", "SHM-2"): Measured(problem="no peer access (PHB)"),
        ("SHM-2", "SHM-0"): Measured(problem="no peer access (PHB)"),
        ("SHM-1", "SHM-2"): Measured(problem="SHM-2: it is quiesced"),
        ("SHM-2", "SHM-1"): link(25.0),
        ("SHM-0", HOST): Measured(problem="a stand-in GPU is host memory itself"),
    }
    return LinkBench(
        gpus=GPUS,
        links=links,
        sent={"SHM-0": Sum(bytes_per_second=120e9, parts_bytes_per_second=200e9)}
        | dict.fromkeys(GPUS[1:], Sum(problem="busy")),
        taken=dict.fromkeys(GPUS, Sum(problem="busy")),
    )


def table(text: str, title: str) -> list[list[str]]:
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(title))
    return [line.split() for line in lines[at + 2 : at + 2 + len(GPUS)]]


def test_rows_are_from_and_columns_are_to() -> None:
    """Both ways differ; what is not known is n/a, and a GPU reaches itself by no link."""
    text = tables(bench()).plain
    assert table(text, "GB/s, copies of 64MiB") == [
        ["0", "SHM-0", "-", "98.5", "n/a"],
        ["1", "SHM-1", "49.6", "-", "n/a"],
        ["2", "SHM-2", "n/a", "24.9", "-"],
    ]
    assert table(text, "latency, us")[0] == ["0", "SHM-0", "-", "10.0", "n/a"]
    assert "to host" not in text.split("n/a:")[0]


def test_sums_are_shown_beside_their_parts() -> None:
    """All that leaves a GPU at once, and how much of what each link does alone."""
    assert table(tables(bench()).plain, "GB/s, all others")[0] == [
        *("0", "SHM-0", "120.0", "60%", "n/a", "n/a")
    ]


def test_each_reason_is_said_once_with_its_links() -> None:
    """Below the tables."""
    lines = tables(bench()).plain.splitlines()
    assert lines[-4:] == [
        "n/a: SHM-0 to SHM-2 and 1 more: no peer access (PHB)",
        "n/a: SHM-1 to SHM-2: SHM-2: it is quiesced",
        "n/a: SHM-0 to host: a stand-in GPU is host memory itself",
        "n/a: SHM-1 to all others and 4 more: busy",
    ]


def test_the_document_has_every_figure() -> None:
    """In bytes and seconds; null where there is none."""
    found = json.loads(json.dumps(document(bench())))
    assert found["schema"] == 1
    first = found["links"][0]
    assert (first["source"], first["target"]) == ("SHM-0", "SHM-1")
    assert round(first["bytes_per_second"] / 1e9) == 100
    assert round(first["latency_seconds"] * 1e6) == 10
    assert [one["nbytes"] for one in first["samples"]] == [64 * KIB, 64 * MIB]
    assert found["links"][2]["bytes_per_second"] is None
    assert found["sums"][0]["parts_bytes_per_second"] == 200e9


def test_nothing_measured_is_empty() -> None:
    """Which the exit status says."""
    assert not bench().is_empty
    assert LinkBench(gpus=GPUS, links={("SHM-0", HOST): Measured(problem="no")}).is_empty
