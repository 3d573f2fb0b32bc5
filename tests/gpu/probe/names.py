"""Words that every part of the probe uses, and that need no driver."""

from __future__ import annotations

LEGACY, VMM = "legacy", "vmm"  # the two kinds of handle
KINDS = (LEGACY, VMM)

Times = dict[str, float]  # seconds by what took them
