"""``[modules.NAME.py]`` of a `Py` module without a script: the keys of upstream's own script for text to speech."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeFloat, PositiveInt, ValidationError

from .checks import Count, Device, File, Folder, same_kind
from .model import Table

DEFAULT_REPO = "kyutai/tts-1.6b-en_fr"


class SpeechOptions(Table):
    """Names and defaults are upstream's, where nothing else is said."""

    hf_repo: str = DEFAULT_REPO
    """Where files come from that are not named themselves."""
    config_path: File | None = None
    """The checkpoint's ``config.json``."""
    moshi_weight: File | None = None
    mimi_weight: File | None = None
    tokenizer: File | None = None
    """Read by nobody: ``text_tokenizer_file`` is."""
    device: Device | None = None
    """As the module's own key, which comes first."""
    n_q: PositiveInt = 24
    """Codebooks made; fewer are quicker."""
    voice_folder: Folder | None = None
    """A folder, a hub's snapshot, or one voice file."""
    default_voice: str = "barack_demo.wav"
    temp: NonNegativeFloat = 0.6
    top_k: PositiveInt | None = None
    """Ours: upstream has 25 for text and 250 for audio fixed."""
    cfg_coef: float = 2.0
    cfg_is_no_text: bool = True
    """What guides has no text either; upstream knows no other way."""
    max_padding: Count = 8
    initial_padding: Count = 2
    final_padding: Count = 4
    padding_between: Count = 1
    padding_bonus: float = 0.0
    interleaved_text_only: Count = 2
    seed: Count | None = None
    """Ours: of every stream; without it each has its own."""
    log_folder: str | None = None
    """Read by nobody."""
    debug: bool = False


def speech_options(options: dict[str, Any] | None) -> SpeechOptions:
    """The options of a `Py` module without a script; raises a validation error that names the key."""
    try:
        return SpeechOptions.model_validate(options or {})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("py", *first["loc"])))
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(SpeechOptions.model_fields))
            raise same_kind(f"{key}: unknown key; without a script these are known: {known}") from None
        raise same_kind(f"{key}: {first['msg']}") from None
