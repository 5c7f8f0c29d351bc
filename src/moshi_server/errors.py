"""The one error tree: every failure a user can meet, with what to do about it; it knows nothing of HTTP or sockets.

MoshiServerError
├── ConfigError            a file, key or value of the configuration is wrong
├── DownloadError          a checkpoint or voice could not be fetched
├── CheckpointError        a checkpoint is unreadable or does not fit the configured model
├── MemoryPlanError        the model does not fit the device
├── NotServedError         the module type is known, but its engine is not part of this version
├── AudioError             audio that cannot be decoded
├── AuthError              credentials missing, wrong or expired
├── ServerUnreachableError a client found no server, or none of this kind, at the address
└── SessionError           one stream's end; others go on
    ├── InvalidMessageError    the client sent something that is not of the protocol
    │   └── TooLargeError          a message or a request's body is over its limit
    ├── NoFreeSlotError        every slot is taken
    ├── ClientTimeoutError     the client sent nothing, or did not read, for too long
    ├── SessionLimitError      the stream reached its time limit
    ├── ResourceNotFoundError  a voice or room that does not exist
    ├── RateLimitedError       too many sessions for one key, at once or in a minute
    ├── GoingAwayError         the server is shutting down
    └── EngineFailedError      the model loop has stopped
        └── ScriptError            a user's Python script failed, hangs, or does not keep its contract
"""

from __future__ import annotations


class MoshiServerError(Exception):
    """Base of everything this package raises on purpose.

    ``str(error)`` is one sentence that says what is wrong; ``hint``, if any, says what to do.
    """

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint

    @property
    def message(self) -> str:
        """What is wrong, without the hint."""
        return str(self.args[0]) if self.args else ""


class ConfigError(MoshiServerError):
    """The configuration cannot be used. ``file`` and ``key`` (dotted) say where, when known."""

    def __init__(self, message: str, *, file: str = "", key: str = "", hint: str = "") -> None:
        where = ": ".join(part for part in (file, key) if part)
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.file = file
        self.key = key


class DownloadError(MoshiServerError):
    """A remote file could not be fetched and is not in the cache."""


class CheckpointError(MoshiServerError):
    """A checkpoint is unreadable, or its tensors are not those the configured model needs."""


class MemoryPlanError(MoshiServerError):
    """Not even one stream fits the device."""


class NotServedError(MoshiServerError):
    """A module type that the configuration may name but this version cannot serve yet."""


class AudioError(MoshiServerError):
    """Audio bytes that cannot be decoded."""


class AuthError(MoshiServerError):
    """Refused credentials. ``code`` is the machine-readable reason."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ServerUnreachableError(MoshiServerError):
    """A client found no server, or none that speaks the protocol, at the address it was given."""


class SessionError(MoshiServerError):
    """The end of one stream, with the reason. It never concerns another stream.

    ``limit`` names the limit that it ran into, in one word for a metric; empty if it was none.
    """

    limit: str = ""

    def __init__(self, message: str, *, hint: str = "", limit: str = "") -> None:
        super().__init__(message, hint=hint)
        if limit:
            self.limit = limit


class InvalidMessageError(SessionError):
    """A message that the protocol does not allow."""


class TooLargeError(InvalidMessageError):
    """A message or a request's body is larger than the module takes."""

    limit = "message_size"


class NoFreeSlotError(SessionError):
    """Every slot of the module is taken."""

    limit = "slots"

    def __init__(self, message: str = "no free channels", *, hint: str = "", limit: str = "") -> None:
        hint = hint or "try again later, or raise batch_size in the module's configuration"
        super().__init__(message, hint=hint, limit=limit)


class ClientTimeoutError(SessionError):
    """The client was silent, or did not read, for longer than the limit."""


class SessionLimitError(SessionError):
    """The stream reached the longest duration that the module allows."""

    limit = "session_time"


class ResourceNotFoundError(SessionError):
    """A voice or room that does not exist here."""


class RateLimitedError(SessionError):
    """Too many sessions at once for one key, or too many begun in a minute."""

    limit = "rate"


class GoingAwayError(SessionError):
    """The server is shutting down."""

    limit = "draining"


class EngineFailedError(SessionError):
    """The model loop has stopped; no stream of this module can go on."""


class ScriptError(EngineFailedError):
    """A user's Python script failed, hangs, or does not keep its contract; the sentence names the file and line."""
