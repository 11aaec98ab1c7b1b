"""The shape of every JSON answer that says no: ``{"error": {"code", "message", "field"}}``."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

#: Status of the refusals of ``callcore.errors.Refused`` that are not the sender's mistake in a
#: field (400).
STATUS_OF_CODE = {
    "uuid-in-use": 409,
    "consent-refused": 409,
    "too-large": 413,
    "no-room": 507,
    "quota-used": 429,
    "exists": 409,
}


class ApiError(Exception):
    """An answer that says no.

    Args:
        status: HTTP status.
        code: Short reason for programs, e.g. ``too-large``.
        message: The reason for people, as a sentence with what would be right.
        field: The input field at fault, if one is.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.headers = headers

    def response(self, **more: Any) -> JSONResponse:
        """Return the answer, with ``more`` beside ``error``."""
        error = {"code": self.code, "message": self.message, "field": self.field}
        return JSONResponse({"error": error, **more}, self.status, self.headers)
