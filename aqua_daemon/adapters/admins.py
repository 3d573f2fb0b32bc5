"""Who administers the node: root, the daemon's own user, and the members of one group if it is set.

Membership is what the kernel said of the process when it connected. No name is looked up after the
start: a directory service that hangs must not hang the daemon.
"""

from __future__ import annotations

import grp
import os
from dataclasses import dataclass

from aqua_daemon.adapters.processes import Peer

ROOT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admins:
    """Those who may set and see everything."""

    daemon_uid: int
    group_id: int | None = None

    def include(self, peer: Peer) -> bool:
        """Whether *peer* is one."""
        is_user = peer.process.uid in {ROOT, self.daemon_uid}
        return is_user or (self.group_id is not None and self.group_id in peer.groups)


def admins_of(group: str) -> Admins:
    """The admins of this daemon; *group* is a name, or empty for no group.

    Raises:
        KeyError: no such group.
    """
    group_id = grp.getgrnam(group).gr_gid if group else None
    return Admins(daemon_uid=os.getuid(), group_id=group_id)
