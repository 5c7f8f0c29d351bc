"""Dialogue without tensors: how one conversation is held, and text tokens to the pieces that are shown as it speaks."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from ..errors import InvalidMessageError

SEED: Final = 299_792_458
"""Upstream draws every conversation's tokens with this one."""
MAX_TOP_K: Final = 500
"""No more candidates than this are ever sorted out of the logits."""
MAX_PENALTY_CONTEXT: Final = 200
"""How many of the last words' tokens a repetition penalty can look back on."""
_MAX_SEED: Final = 2**63 - 1


@dataclass(frozen=True)
class DialogueSettings:
    """How one conversation is held; the names are those of the queries that upstream's page sends.

    Attributes:
        text_temperature: 0 takes the likeliest token.
        text_topk: how many candidates a text token is drawn from.
        audio_temperature: as for text.
        audio_topk: as for text.
        text_seed: with the same seeds and the same audio, a conversation is the same again.
        audio_seed: of the audio tokens.
        pad_mult: added to the padding token's log-probability: above 0 the model says less.
        repetition_penalty: 1 is none; above it, what was said lately gets less likely.
        repetition_penalty_context: over how many of the last text tokens.
        max_steps: the conversation's longest length in frames of 80 ms; 0 for no limit.
        conditions: for each conditioner that the model sums to its input, the named value.
    """

    text_temperature: float = 0.8
    text_topk: int = 25
    audio_temperature: float = 0.8
    audio_topk: int = 250
    text_seed: int = SEED
    audio_seed: int = SEED
    pad_mult: float = 0.0
    repetition_penalty: float = 1.0
    repetition_penalty_context: int = 64
    max_steps: int = 0
    conditions: Mapping[str, str] = field(default_factory=dict)

    def changed(
        self, values: Mapping[str, str], known_conditions: Mapping[str, Collection[str]] | None = None
    ) -> DialogueSettings:
        """With what a client asks for; names that mean nothing here are passed over, as upstream does.

        ``seed`` sets both seeds. A conditioner's name sets its value.

        Raises:
            InvalidMessageError: a value that is none, or is out of range.
        """
        changes: dict[str, Any] = {}
        if "seed" in values:
            changes["text_seed"] = changes["audio_seed"] = _number("seed", values["seed"], _RANGES["text_seed"], int)
        for each in fields(self):
            if each.name in values and each.name in _RANGES:
                kind = float if each.name in _FRACTIONS else int
                changes[each.name] = _number(each.name, values[each.name], _RANGES[each.name], kind)
        conditions = dict(self.conditions)
        for name, possible in (known_conditions or {}).items():
            if name in values:
                if values[name] not in possible:
                    raise InvalidMessageError(
                        f"{name}={values[name][:40]} is not a value that the model knows",
                        hint=f"one of {', '.join(possible)}",
                    )
                conditions[name] = values[name]
        return replace(self, **changes, conditions=conditions)

    def public(self) -> dict[str, Any]:
        """What a client may be told of it."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "conditions"} | {
            "conditions": dict(self.conditions)
        }


_RANGES: Final[dict[str, tuple[float, float]]] = {
    "text_temperature": (0.0, 10.0),
    "text_topk": (1, MAX_TOP_K),
    "audio_temperature": (0.0, 10.0),
    "audio_topk": (1, MAX_TOP_K),
    "text_seed": (0, _MAX_SEED),
    "audio_seed": (0, _MAX_SEED),
    "pad_mult": (-20.0, 20.0),
    "repetition_penalty": (0.01, 100.0),
    "repetition_penalty_context": (0, MAX_PENALTY_CONTEXT),
    "max_steps": (0, 2**40),
}
_FRACTIONS: Final = {"text_temperature", "audio_temperature", "pad_mult", "repetition_penalty"}


def _number(name: str, text: str, limits: tuple[float, float], kind: type[int] | type[float]) -> int | float:
    low, high = limits
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:  # not a number is neither
        what = "a whole number" if kind is int else "a number"
        raise InvalidMessageError(f"{name}={text[:40]} is not {what} from {low:g} to {high:g}")
    return value


class TextPieces:
    """Text tokens to what is shown, one by one: a word's first piece brings its space, silence nothing.

    Characters that the vocabulary spells byte by byte are given out once they are whole.

    Args:
        piece: a token as it stands in the vocabulary, its leading space a ``▁``.
        is_byte: whether a token stands for one byte.
        silent: tokens that are never shown: padding, its end, the start.
    """

    def __init__(self, piece: Callable[[int], str], is_byte: Callable[[int], bool], silent: Collection[int]) -> None:
        self._piece = piece
        self._is_byte = is_byte
        self._silent = frozenset(silent)
        self.restart()

    def restart(self) -> None:
        """A new conversation begins."""
        self._begun = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, token: int) -> str:
        """What this token adds to the text shown; maybe nothing."""
        if token in self._silent:
            return ""
        if self._is_byte(token):
            shown = self._utf8.decode(bytes((int(self._piece(token)[3:5], 16),)))
        else:
            shown = self._utf8.decode(b"", final=True) + self._piece(token).replace("▁", " ")
            self._utf8.reset()
        if not self._begun:
            shown = shown.lstrip(" ")
            self._begun = bool(shown)
        return shown
