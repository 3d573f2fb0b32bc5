"""What a request is refused with: a status, and OpenAI's error object."""

from __future__ import annotations

import math


class Refusal(Exception):
    """Becomes the response. `status` is HTTP's, `kind` and `code` are OpenAI's words."""

    status = 400
    kind = "invalid_request_error"

    def __init__(
        self, message: str, *, parameter: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """Beside the body."""
        return {}

    def body(self) -> dict[str, object]:
        """As OpenAI has it."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.parameter,
                "code": self.code,
            }
        }


class BadRequest(Refusal):
    """The caller's: this can never be."""


class UnknownModel(Refusal):
    """There is another one here."""

    status = 404

    def __init__(self, asked: str, served: str) -> None:
        super().__init__(
            f"the model {asked!r} is not served here: {served!r} is",
            parameter="model",
            code="model_not_found",
        )


class TooMany(Refusal):
    """Later: more would stall everybody."""

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message, code="rate_limit_exceeded")
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        """When to ask again, in whole seconds."""
        return {"retry-after": str(max(1, math.ceil(self.retry_after_seconds)))}


class Unavailable(Refusal):
    """The engine has stopped, or is stopping."""

    status = 503
    kind = "server_error"


class EngineFailed(Refusal):
    """The engine gave the request up."""

    status = 500
    kind = "server_error"
