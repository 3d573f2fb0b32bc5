"""The file of settings: what is written is read, what is broken is refused, a crash leaves one whole."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from aqua_daemon.adapters.settings_file import (
    Kept,
    SettingsFile,
    UnreadableSettings,
    content_of,
    kept_of,
    replace_file,
)
from aqua_daemon.adapters.statuses import NotKept
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import GpuUuid, TenantName
from aqua_daemon.core.node_snapshot import NodeSnapshot, QuotaSnapshot

MIB = 2**20


def shown(name: str, nbytes: int, revision: int, *, is_default: bool = False) -> QuotaSnapshot:
    return QuotaSnapshot(
        tenant=TenantName(name),
        nbytes=nbytes,
        is_default=is_default,
        revision=revision,
        held_bytes=5,
    )


SHOWN = (
    shown("uid-1000/llm@2.service+blue", 64 * MIB, 3),
    shown("uid-1001", 256 * MIB, 2, is_default=True),
    shown("uid-1002", 256 * MIB, 0, is_default=True),
)
KEPT = Kept(
    quotas={
        TenantName("uid-1000/llm@2.service+blue"): Quota(revision=3, nbytes=64 * MIB),
        TenantName("uid-1001"): Quota(revision=2, nbytes=None),
    }
)


def books(*quotas: QuotaSnapshot, drained: tuple[str, ...] = ()) -> NodeSnapshot:
    """A node of which only what admins have set matters."""
    return NodeSnapshot(
        now=0.0,
        gpus=(),
        leases=(),
        sessions=(),
        tenants=(),
        host_pool_bytes=0,
        host_reserved_bytes=0,
        restarting=False,
        invariant_violations=0,
        quotas=quotas,
        drained=tuple(map(GpuUuid, drained)),
    )


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    """Also the revision of what was set back; nothing of tenants whom nobody set anything."""
    file = SettingsFile(tmp_path / "state" / "quotas.json")
    assert file.read() == Kept()
    asyncio.run(file.keep(lambda: books(*SHOWN)))
    assert file.read() == KEPT
    asyncio.run(file.keep(lambda: books(*SHOWN[1:])))
    assert file.read() == Kept(quotas={TenantName("uid-1001"): KEPT.quotas[TenantName("uid-1001")]})
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["quotas.json"]


def test_counts_are_kept_only_where_they_are_set(tmp_path: Path) -> None:
    """A file without counts is as it always was; one that has some is read again with them."""
    path = tmp_path / "quotas.json"
    path.write_text('{"schema": 1, "quotas": {"uid-1": {"bytes": null, "revision": 4}}}')
    assert SettingsFile(path).read().quotas == {TenantName("uid-1"): Quota(revision=4, nbytes=None)}
    assert b"leases" not in content_of(SHOWN)
    counted = (
        replace(SHOWN[0], leases=0, leases_are_default=False),
        replace(SHOWN[1], sessions=7, sessions_are_default=False),
    )
    asyncio.run(SettingsFile(path).keep(lambda: books(*counted)))
    assert SettingsFile(path).read().quotas == {
        counted[0].tenant: Quota(revision=3, nbytes=64 * MIB, leases=0),
        counted[1].tenant: Quota(revision=2, nbytes=None, sessions=7),
    }


def test_weights_and_priorities_are_kept_only_where_they_are_set(tmp_path: Path) -> None:
    """A file without them is as it always was; one that has some is read again with them."""
    path = tmp_path / "quotas.json"
    assert b"weight" not in content_of(SHOWN)
    assert b"priority" not in content_of(SHOWN)
    ranked = (
        replace(SHOWN[0], weight=2.5, weight_is_default=False),
        replace(SHOWN[1], priority=-7, priority_is_default=False),
    )
    asyncio.run(SettingsFile(path).keep(lambda: books(*ranked)))
    assert SettingsFile(path).read().quotas == {
        ranked[0].tenant: Quota(revision=3, nbytes=64 * MIB, weight=2.5),
        ranked[1].tenant: Quota(revision=2, nbytes=None, priority=-7),
    }


def test_drained_gpus_are_kept_only_while_there_are_any(tmp_path: Path) -> None:
    """Beside the quotas; without one the file is as releases that know of none write it."""
    path = tmp_path / "quotas.json"
    asyncio.run(SettingsFile(path).keep(lambda: books(*SHOWN, drained=("SHM-1", "SHM-0"))))
    kept = SettingsFile(path).read()
    assert kept == replace(KEPT, drained=frozenset(map(GpuUuid, ("SHM-0", "SHM-1"))))
    asyncio.run(SettingsFile(path).keep(lambda: books(*SHOWN)))
    assert path.read_bytes() == content_of(SHOWN)
    assert json.loads(path.read_bytes()).keys() == {"schema", "quotas"}


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Tenants may not read what others may hold."""
    path = tmp_path / "state" / "quotas.json"
    asyncio.run(SettingsFile(path).keep(lambda: books(*SHOWN)))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


GOOD = json.loads(content_of(SHOWN))
BAD_DRAINED: tuple[object, ...] = (None, {}, "SHM-1", [7], [""], ["SHM-1; rm"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"not json",
        b"[]",
        b"null",
        b"[" * 2**16,  # deeper than a parser goes
        content_of(SHOWN)[:-10],
        json.dumps({**GOOD, "schema": 2}).encode(),
        json.dumps({**GOOD, "more": 1}).encode(),
        *(json.dumps({**GOOD, "drained": drained}).encode() for drained in BAD_DRAINED),
        json.dumps({"schema": 1}).encode(),
        json.dumps({"schema": 1, "quotas": []}).encode(),
        json.dumps({"schema": 1, "quotas": {"bob": {"bytes": 1, "revision": 1}}}).encode(),
        *(
            json.dumps({"schema": 1, "quotas": {"uid-1": value}}).encode()
            for value in (
                None,
                {},
                {"bytes": 1},
                {"bytes": "1", "revision": 1},
                {"bytes": True, "revision": 1},
                {"bytes": -1, "revision": 1},
                {"bytes": 2**60, "revision": 1},
                {"bytes": 1, "revision": 0},
                {"bytes": 1, "revision": 1.5},
                {"bytes": 1, "revision": 1, "more": 1},
                {"bytes": 1, "leases": 1},
                {"bytes": 1, "revision": 1, "leases": -1},
                {"bytes": 1, "revision": 1, "leases": "1"},
                {"bytes": 1, "revision": 1, "leases": True},
                {"bytes": 1, "revision": 1, "sessions": 1.5},
                {"bytes": 1, "revision": 1, "sessions": 2**40},
                {"bytes": 1, "revision": 1, "weight": 0},
                {"bytes": 1, "revision": 1, "weight": "2"},
                {"bytes": 1, "revision": 1, "weight": True},
                {"bytes": 1, "revision": 1, "weight": float("nan")},
                {"bytes": 1, "revision": 1, "priority": 0.5},
                {"bytes": 1, "revision": 1, "priority": -1001},
            )
        ),
    ],
)
def test_a_broken_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    """Never taken for none; the message names the file and both ways out."""
    path = tmp_path / "quotas.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableSettings, match="Restore it from a backup") as caught:
        SettingsFile(path).read()
    assert f"mv {path} {path}.bad" in str(caught.value)
    assert path.read_bytes() == content


def test_what_can_not_be_opened_is_refused(tmp_path: Path) -> None:
    """A directory in its place is no quota file either."""
    (tmp_path / "quotas.json").mkdir()
    with pytest.raises(UnreadableSettings, match="Is a directory"):
        SettingsFile(tmp_path / "quotas.json").read()


def test_a_disk_that_refuses_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told that the quota ends with the daemon; nothing half written stays."""
    path = tmp_path / "quotas.json"
    file = SettingsFile(path)
    asyncio.run(file.keep(lambda: books(*SHOWN)))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotKept, match="No space left on device"):
        asyncio.run(file.keep(books))
    assert file.read() == KEPT
    assert [found.name for found in tmp_path.iterdir()] == ["quotas.json"]


def test_a_crash_at_any_moment_leaves_one_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are durable before the name is theirs: a crash before it leaves the old file."""
    path = tmp_path / "quotas.json"
    replace_file(path, content_of(SHOWN))
    story: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        story.append("sync")
        assert kept_of(path.read_bytes()) in (KEPT, Kept())
        sync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        story.append("replace")
        assert kept_of(path.read_bytes()) == KEPT
        assert kept_of(self.read_bytes()) == Kept()
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    replace_file(path, content_of(()))
    assert story == ["sync", "replace", "sync"]
    assert kept_of(path.read_bytes()) == Kept()


def test_what_a_crash_left_beside_is_overwritten(tmp_path: Path) -> None:
    """A half-written file of an earlier daemon is in nobody's way."""
    (tmp_path / "quotas.json.new").write_bytes(b"half")
    file = SettingsFile(tmp_path / "quotas.json")
    asyncio.run(file.keep(lambda: books(*SHOWN)))
    assert file.read() == KEPT


def test_of_two_who_write_at_once_the_later_setting_stays(tmp_path: Path) -> None:
    """Each reads the books when it is its turn, so the file never goes back."""
    file = SettingsFile(tmp_path / "quotas.json")
    current: list[NodeSnapshot] = [books(*SHOWN[:1])]

    async def both() -> None:
        first = asyncio.create_task(file.keep(lambda: current[0]))
        await asyncio.sleep(0)
        current[0] = books(*SHOWN[:2])
        await asyncio.gather(first, file.keep(lambda: current[0]))

    asyncio.run(both())
    assert file.read() == KEPT
