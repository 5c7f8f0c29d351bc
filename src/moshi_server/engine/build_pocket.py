"""A `PocketTts` module from its configuration: the package's model, a copy a slot on the same weights, its voices."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..config import PocketTtsConfig
from ..errors import CheckpointError, ConfigError, MoshiServerError, NotServedError, ResourceNotFoundError
from ..hub import resolve
from ..speech.voices import Voices
from .hooks import EngineHooks
from .pocket import PocketRunner, PocketStream
from .worker import Engine, EngineLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

KEPT_VOICES: Final = 16
"""Voices whose states stay in memory; others are read again."""


def pocket_engine(name: str, module: PocketTtsConfig, hooks: EngineHooks, *, warmup: bool) -> tuple[Engine, Voices]:
    """One module of type `PocketTts`, and its voices.

    Raises:
        NotServedError: the package is not installed.
        CheckpointError: its model cannot be loaded.
        ConfigError: the default voice is none.
    """
    with _threads_kept():
        model, predefined = _model(module)
    names = {*predefined, *module.voices}
    if module.default_voice not in names:
        raise ConfigError(
            f"default_voice = {module.default_voice!r} is no voice", key="default_voice", hint=f"one of {sorted(names)}"
        )
    voices = Voices(names, default=module.default_voice)
    states = _States(model, {voice: str(resolve(uri)) for voice, uri in module.voices.items()}, module.default_voice)
    models = [model, *(_twin(model) for _ in range(module.batch_size - 1))]
    engine = Engine(
        name,
        module.type,
        PocketRunner(models, states.of),
        lambda: PocketStream(voices),
        limits=EngineLimits(session_seconds=module.max_session_seconds),
        hooks=hooks,
        warmup=warmup,
    )
    return engine, voices


class _States:
    """Voices as the model takes them, computed on first use and kept."""

    def __init__(self, model: Any, files: dict[str, str], default: str) -> None:
        self._model = model
        self._files = files
        self._default = default
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, voice: str | None) -> Any:
        """The state of a voice, of the default one for None.

        Raises:
            ResourceNotFoundError: it cannot be had.
        """
        name = voice if voice is not None else self._default
        with self._lock:  # the model that reads voices is one
            if name not in self._kept:
                try:
                    self._kept[name] = self._model.get_state_for_audio_prompt(self._source(name))
                except Exception as error:
                    logger.warning("voice %s cannot be read: %s", name, error)
                    raise ResourceNotFoundError(f"voice {name!r} cannot be read: {error}") from error
            self._kept.move_to_end(name)
            while len(self._kept) > KEPT_VOICES:
                self._kept.popitem(last=False)
            return self._kept[name]

    def _source(self, name: str) -> Any:
        return Path(self._files[name]) if name in self._files else name


def _model(module: PocketTtsConfig) -> tuple[Any, frozenset[str]]:
    """The package's model, and the names of its own voices."""
    try:
        from pocket_tts import TTSModel
        from pocket_tts.utils.utils import _ORIGINS_OF_PREDEFINED_VOICES
    except ImportError:
        raise NotServedError(
            "type PocketTts needs the package pocket-tts", hint="install it with: pip install 'moshi-server[pocket]'"
        ) from None
    own = module.config_file is None
    source = (
        {"language": module.language} if module.config_file is None else {"config": str(resolve(module.config_file))}
    )
    try:
        model = TTSModel.load_model(**source, temp=module.temperature, quantize=module.quantize == "int8")
    except MoshiServerError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"Pocket TTS cannot be loaded: {error}", hint="check language or config_file, and that the files can be had"
        ) from error
    model.eval()
    return model, frozenset(_ORIGINS_OF_PREDEFINED_VOICES) if own else frozenset()


def _twin(model: Any) -> Any:
    """Another model on the same weights: one of them speaks one text at a time."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """The package sets torch to one thread as it is imported; other modules' models are not to be slowed by that."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
