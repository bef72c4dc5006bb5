"""Errors that a client gets: a status, and a JSON body as OpenAI's clients expect it."""

from typing import Any

LONGEST_MESSAGE = 500  # Characters: a message repeats what the client sent.
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What is wrong with a request. The message says what is wrong, what is allowed, what to do.

    Attributes:
      status: of HTTP.
      code: a word for programs.
      param: the field that is wrong.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that the client gets."""
        message = str(self)
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]} ..."
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, kind)
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
