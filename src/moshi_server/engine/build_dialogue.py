"""From a module of type `Lm` to its runner and streams; like `engine/build.py` it sees `Config`; it reads no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..config import LmConfig, LutConditionerConfig
from ..speech.dialogue import MAX_PENALTY_CONTEXT, MAX_TOP_K, DialogueSettings, TextPieces
from ..speech.tokenizer import TextTokenizer
from .cuda_speech import CudaDialogueRunner
from .dialogue import DialogueRunner, DialogueStream

if TYPE_CHECKING:
    import torch

    from ..model.conditioning import ConditionProvider
    from ..model.lm import LmModel
    from ..model.mimi import Mimi

DESCRIPTION = ("description", "very_good")
"""What upstream tells every model that has this conditioner."""


def dialogue_settings(module: LmConfig) -> DialogueSettings:
    """How a conversation is held unless its client asks otherwise."""
    conditions = dict(module.conditions)
    name, value = DESCRIPTION
    if value in named_conditions(module).get(name, ()):
        conditions.setdefault(name, value)
    return DialogueSettings(**module.sampling.model_dump(), conditions=conditions)


def named_conditions(module: LmConfig) -> dict[str, tuple[str, ...]]:
    """The values of each conditioner that takes named ones."""
    return {
        name: tuple(entry.possible_values)
        for name, entry in (module.model.conditioners or {}).items()
        if isinstance(entry, LutConditionerConfig)
    }


def dialogue_runner(module: LmConfig, lm: LmModel, mimi: Mimi, device: torch.device) -> Callable[[int], DialogueRunner]:
    """What makes a runner of so many slots."""
    from ..model.dialogue import DialogueModel, DialogueSpec

    spec = DialogueSpec(
        **module.gen.model_dump(exclude={"audio_vocab_size"}),
        most_candidates=MAX_TOP_K,
        penalty_context=MAX_PENALTY_CONTEXT,
    )
    model = DialogueModel(mimi, lm, spec)
    condition = summed_conditions(lm.condition_provider)
    settings = dialogue_settings(module)
    kind = CudaDialogueRunner if device.type == "cuda" else DialogueRunner
    return lambda slots: kind(model, slots, device, condition=condition, settings=settings)


def summed_conditions(provider: ConditionProvider | None) -> Callable[[Mapping[str, str]], torch.Tensor | None]:
    """What a conversation's named values add to every input, (D,) f32; a conditioner without one adds its padding."""
    known: dict[tuple[tuple[str, str], ...], torch.Tensor | None] = {}

    def condition(values: Mapping[str, str]) -> torch.Tensor | None:
        if provider is None:
            return None
        key = tuple(sorted(values.items()))
        if key not in known:
            parts = [
                provider.named(name, values[name]) if name in values else provider.learnt_padding(name)
                for name in provider.conditioners
            ]
            known[key] = sum(parts[1:], parts[0]).detach()
        return known[key]

    return condition


def dialogue_streams(module: LmConfig, tokenizer: TextTokenizer) -> Callable[[], DialogueStream]:
    """What makes one client's conversation."""
    gen = module.gen
    silent = (gen.text_pad_token, gen.text_eop_token, gen.text_start_token)
    settings, conditions = dialogue_settings(module), named_conditions(module)
    about = {"lm_model_file": module.lm_model_file, "mimi_model_file": module.audio_tokenizer_file}

    def make() -> DialogueStream:
        pieces = TextPieces(tokenizer.piece, tokenizer.is_byte, silent)
        return DialogueStream(pieces, settings, conditions=conditions, about=about)

    return make
