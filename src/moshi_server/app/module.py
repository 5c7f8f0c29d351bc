"""One module as the web application sees it: an engine, where it answers, and what its clients may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..engine.worker import Engine
from ..metrics import ModuleMetrics
from ..speech.voices import Voices


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What a client may do, and how long it may take.

    Attributes:
        idle_seconds: with no frame from it at all, pongs included.
        message_seconds: with no binary message from it.
        send_seconds: without reading what is sent to it.
        post_wait_seconds: that a POST waits for a slot.
        upload_seconds: that a POST's body may take to come.
        max_message_bytes: of one WebSocket message.
        max_upload_bytes: of one POST body.
        max_waiting_posts: POSTs that may wait beyond those being served.
    """

    idle_seconds: float = 20.0
    message_seconds: float = 120.0
    send_seconds: float = 10.0
    post_wait_seconds: float = 100.0
    upload_seconds: float = 600.0
    max_message_bytes: int = 16 * 2**20
    max_upload_bytes: int = 512 * 2**20
    max_waiting_posts: int = 32


@dataclass(frozen=True, slots=True)
class RoomsSpec:
    """The rooms of a `Mimi` module.

    Attributes:
        names: all rooms.
        default: where a listener goes that names none; None refuses it.
        listen_path: where listeners connect; producers do at the module's path.
        auth: whether a listener must show credentials.
    """

    names: tuple[str, ...]
    default: str | None
    listen_path: str
    auth: bool


@dataclass(frozen=True, slots=True)
class ServedModule:
    """A module that answers at ``path``.

    Attributes:
        files: what it was loaded from, by upstream's names (``lm``, ``audio_tokenizer``, ``script``).
        auth: whether a client must show credentials.
        rooms: what a `Mimi` module has beside its engine.
        voices: what a text-to-speech module can speak with; None where nobody knows, such as for scripts.
        step_seconds: a model step that takes longer has hung; 0 to wait for ever.
        at_drain: called with the seconds that are left, once the server was told to end.
        at_end: called once the server has drained, before it closes what is left.
    """

    name: str
    kind: str
    path: str
    engine: Engine
    metrics: ModuleMetrics
    files: dict[str, str] = field(default_factory=dict)
    auth: bool = True
    limits: ClientLimits = field(default_factory=ClientLimits)
    rooms: RoomsSpec | None = None
    voices: Voices | None = None
    step_seconds: float = 0.0
    at_drain: list[Callable[[float], None]] = field(default_factory=list)
    at_end: list[Callable[[], None]] = field(default_factory=list)

    @property
    def slots_free(self) -> int:
        """How many streams can be opened now: none while it warms up, drains, or has failed."""
        return self.engine.slots_total - self.engine.slots_used if self.engine.status == "ready" else 0

    @property
    def has_room(self) -> bool:
        """Whether another client can be taken: listeners always can, and recordings wait for their turn."""
        return self.slots_free > 0 or not self.streams

    @property
    def streams(self) -> bool:
        """Whether each of its clients holds a slot of its own."""
        return self.rooms is None and self.kind != "PyPost"
