"""What a keeper refuses: a gRPC status name, and a message with the figures and what to do."""

from __future__ import annotations


class Refused(Exception):
    """The request has had no effect; it becomes a `Failed` answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> Refused:
    """The request can never be met: its sender has to change it."""
    return Refused("INVALID_ARGUMENT", message)


def exhausted(message: str) -> Refused:
    """Not now: waiting can help."""
    return Refused("RESOURCE_EXHAUSTED", message)
