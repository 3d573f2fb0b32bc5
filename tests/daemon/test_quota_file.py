"""The file of quotas: what is written is read, what is broken is refused, a crash leaves one whole."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from aqua_daemon.adapters.quota_file import (
    QuotaFile,
    UnreadableQuotas,
    content_of,
    quotas_of,
    replace_file,
)
from aqua_daemon.adapters.statuses import NotKept
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import QuotaSnapshot, TenantName

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
KEPT = {
    TenantName("uid-1000/llm@2.service+blue"): Quota(revision=3, nbytes=64 * MIB),
    TenantName("uid-1001"): Quota(revision=2, nbytes=None),
}


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    """Also the revision of what was set back; nothing of tenants whom nobody set anything."""
    file = QuotaFile(tmp_path / "state" / "quotas.json")
    assert file.read() == {}
    asyncio.run(file.keep(lambda: SHOWN))
    assert file.read() == KEPT
    asyncio.run(file.keep(lambda: SHOWN[1:]))
    assert file.read() == {TenantName("uid-1001"): KEPT[TenantName("uid-1001")]}
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["quotas.json"]


def test_counts_are_kept_only_where_they_are_set(tmp_path: Path) -> None:
    """A file without counts is as it always was; one that has some is read again with them."""
    path = tmp_path / "quotas.json"
    path.write_text('{"schema": 1, "quotas": {"uid-1": {"bytes": null, "revision": 4}}}')
    assert QuotaFile(path).read() == {TenantName("uid-1"): Quota(revision=4, nbytes=None)}
    assert b"leases" not in content_of(SHOWN)
    counted = (
        replace(SHOWN[0], leases=0, leases_are_default=False),
        replace(SHOWN[1], sessions=7, sessions_are_default=False),
    )
    asyncio.run(QuotaFile(path).keep(lambda: counted))
    assert QuotaFile(path).read() == {
        counted[0].tenant: Quota(revision=3, nbytes=64 * MIB, leases=0),
        counted[1].tenant: Quota(revision=2, nbytes=None, sessions=7),
    }


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Tenants may not read what others may hold."""
    path = tmp_path / "state" / "quotas.json"
    asyncio.run(QuotaFile(path).keep(lambda: SHOWN))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


GOOD = json.loads(content_of(SHOWN))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"not json",
        b"[]",
        b"null",
        content_of(SHOWN)[:-10],
        json.dumps({**GOOD, "schema": 2}).encode(),
        json.dumps({**GOOD, "more": 1}).encode(),
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
            )
        ),
    ],
)
def test_a_broken_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    """Never taken for none; the message names the file and both ways out."""
    path = tmp_path / "quotas.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableQuotas, match="Restore it from a backup") as caught:
        QuotaFile(path).read()
    assert f"mv {path} {path}.bad" in str(caught.value)
    assert path.read_bytes() == content


def test_what_can_not_be_opened_is_refused(tmp_path: Path) -> None:
    """A directory in its place is no quota file either."""
    (tmp_path / "quotas.json").mkdir()
    with pytest.raises(UnreadableQuotas, match="Is a directory"):
        QuotaFile(tmp_path / "quotas.json").read()


def test_a_disk_that_refuses_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told that the quota ends with the daemon; nothing half written stays."""
    path = tmp_path / "quotas.json"
    file = QuotaFile(path)
    asyncio.run(file.keep(lambda: SHOWN))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotKept, match="No space left on device"):
        asyncio.run(file.keep(lambda: ()))
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
        assert quotas_of(path.read_bytes()) in (KEPT, {})
        sync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        story.append("replace")
        assert quotas_of(path.read_bytes()) == KEPT
        assert quotas_of(self.read_bytes()) == {}
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    replace_file(path, content_of(()))
    assert story == ["sync", "replace", "sync"]
    assert quotas_of(path.read_bytes()) == {}


def test_what_a_crash_left_beside_is_overwritten(tmp_path: Path) -> None:
    """A half-written file of an earlier daemon is in nobody's way."""
    (tmp_path / "quotas.json.new").write_bytes(b"half")
    file = QuotaFile(tmp_path / "quotas.json")
    asyncio.run(file.keep(lambda: SHOWN))
    assert file.read() == KEPT


def test_of_two_who_write_at_once_the_later_setting_stays(tmp_path: Path) -> None:
    """Each reads the books when it is its turn, so the file never goes back."""
    file = QuotaFile(tmp_path / "quotas.json")
    current: list[tuple[QuotaSnapshot, ...]] = [SHOWN[:1]]

    async def both() -> None:
        first = asyncio.create_task(file.keep(lambda: current[0]))
        await asyncio.sleep(0)
        current[0] = SHOWN[:2]
        await asyncio.gather(first, file.keep(lambda: current[0]))

    asyncio.run(both())
    assert file.read() == KEPT
