"""What tests of the client's messages share."""

from __future__ import annotations

from aqua_client.records import HostRoom

MIB = 2**20
ROOM = HostRoom(revision=3, nbytes=5)
