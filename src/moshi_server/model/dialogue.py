"""Full-duplex dialogue as tensors: a frame heard, a token and a frame spoken, for many streams; no words, no time.

The order of events is that of upstream's Rust server (``moshi-core/src/lm_generate_multistream.rs``), and the numbers
are those of the PyTorch package's ``LMGen`` too: a frame's codes reach the language model at the next step, and all
codebooks but the first of each speaker run ``delay`` frames behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from moshi_server.model.depformer import Depformer
from moshi_server.model.lm import LmModel
from moshi_server.model.mimi import Mimi
from moshi_server.model.sampling import sample_rows
from moshi_server.model.streaming import State, branch, leaf

_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class DialogueSpec:
    """Which codebooks are spoken and heard, and what stands for what; names as in a configuration's ``[gen]``.

    ``most_candidates`` bounds ``text_topk`` and ``audio_topk``, ``penalty_context`` what a repetition penalty looks at.
    """

    generated_audio_codebooks: int
    input_audio_codebooks: int
    acoustic_delay: int
    text_pad_token: int
    text_eop_token: int
    text_start_token: int
    most_candidates: int = 500
    penalty_context: int = 200


class SlotSettings(Protocol):
    """How one slot draws its tokens; `moshi_server.speech.dialogue.DialogueSettings` says what each means."""

    @property
    def text_temperature(self) -> float: ...  # noqa: D102
    @property
    def text_topk(self) -> int: ...  # noqa: D102
    @property
    def audio_temperature(self) -> float: ...  # noqa: D102
    @property
    def audio_topk(self) -> int: ...  # noqa: D102
    @property
    def text_seed(self) -> int: ...  # noqa: D102
    @property
    def audio_seed(self) -> int: ...  # noqa: D102
    @property
    def pad_mult(self) -> float: ...  # noqa: D102
    @property
    def repetition_penalty(self) -> float: ...  # noqa: D102
    @property
    def repetition_penalty_context(self) -> int: ...  # noqa: D102


class DialogueModel(nn.Module):
    """Mimi's encoder, a language model with a depth transformer, Mimi's decoder.

    One step of a stream is `hear` (not in its first step), `think`, and `speak` once ``delay`` steps are past.
    """

    def __init__(self, mimi: Mimi, lm: LmModel, spec: DialogueSpec) -> None:
        super().__init__()
        generated, heard = spec.generated_audio_codebooks, spec.input_audio_codebooks
        assert generated + heard == lm.spec.audio_codebooks, "the codebooks are not those of the language model"
        assert max(generated, heard) <= mimi.codebooks, "Mimi was loaded with too few codebooks"
        self.mimi = mimi
        self.lm = lm
        self.spec = spec

    @property
    def delay(self) -> int:
        """Steps before the first that speaks."""
        return self.spec.acoustic_delay

    def init_state(self, slots: int, *, device: torch.device | str | None = None) -> State:
        """All-zero state: of Mimi both ways and the language model, and for each slot what it last said and heard
        (``heard`` and ``lead`` reach ``delay`` frames back), how it draws tokens, and what it is conditioned on.
        """
        device = device if device is not None else self.lm.text_emb.weight.device
        spec, reach = self.spec, self.spec.acoustic_delay + 1

        def whole(*shape: int) -> Tensor:
            return torch.zeros((slots, *shape), dtype=torch.int64, device=device)

        def real(*shape: int) -> Tensor:
            return torch.zeros((slots, *shape), dtype=torch.float32, device=device)

        state: State = {
            "encoder": self.mimi.init_encoder_state(slots, device=device),
            "decoder": self.mimi.init_decoder_state(slots, device=device),
            "lm": self.lm.init_state(slots, device=device),
            "steps": whole(),
            "text": whole(),
            "spoken": whole(spec.generated_audio_codebooks),
            "heard": whole(spec.input_audio_codebooks, reach),
            "lead": whole(reach),
            "said": whole(spec.penalty_context),
            "said_count": whole(),
            # text_topk, audio_topk, text_seed, audio_seed, repetition_penalty_context
            "whole_settings": whole(5),
            # text_temperature, audio_temperature, pad_mult, repetition_penalty
            "real_settings": real(4),
        }
        if self.lm.condition_provider is not None:
            state["condition"] = real(self.lm.spec.transformer.d_model)
        return state

    @torch.inference_mode()
    def begin(self, state: State, slot: int, settings: SlotSettings, condition: Tensor | None = None) -> None:
        """Say how the stream in ``slot``, just reset, draws its tokens; ``condition`` (D,) f32 joins its inputs."""
        seeds = [(seed ^ seed >> 32) & _MASK for seed in (settings.text_seed, settings.audio_seed)]
        whole = [settings.text_topk, settings.audio_topk, *seeds, settings.repetition_penalty_context]
        real = [
            settings.text_temperature,
            settings.audio_temperature,
            settings.pad_mult,
            settings.repetition_penalty,
        ]
        numbers = leaf(state, "whole_settings")
        numbers[slot] = torch.tensor(whole, device=numbers.device)
        leaf(state, "real_settings")[slot] = torch.tensor(real, device=numbers.device)
        if condition is not None:
            leaf(state, "condition")[slot] = condition

    def unheard(self, count: int) -> Tensor:
        """What stands for a frame's codes in a stream's first step: (count, K_in) int64."""
        device = self.lm.text_emb.weight.device
        shape = (count, self.spec.input_audio_codebooks)
        return torch.full(shape, self.lm.spec.audio_pad_token, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def hear(self, pcm: Tensor, state: State, slots: Tensor) -> Tensor:
        """One frame ``pcm`` (B, frame_size), f32 at 24 kHz, of each stream -> its codes (B, K_in) int64."""
        codes = self.mimi.encode_step(pcm, branch(state, "encoder"), slots)
        return codes[:, : self.spec.input_audio_codebooks]

    @torch.inference_mode()
    def speak(self, codes: Tensor, state: State, slots: Tensor) -> Tensor:
        """One frame's codes (B, K_out) int64 of each stream -> its sound (B, frame_size)."""
        return self.mimi.decode_step(codes, branch(state, "decoder"), slots)

    @torch.inference_mode()
    def think(self, codes: Tensor, state: State, slots: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the streams ``slots`` (B,), int64 and distinct, from the ``codes`` (B, K_in) just heard.

        Returns the text tokens (B,) int64, and the codes (B, K_out) int64 of the frame ``delay`` steps ago, whole now;
        they mean nothing in a stream's first ``delay`` steps.
        """
        steps = leaf(state, "steps").index_select(0, slots)
        heard = torch.cat((codes[:, :, None], leaf(state, "heard").index_select(0, slots)[:, :, :-1]), dim=2)
        text, audio = self._inputs(steps, heard, state, slots)
        condition = leaf(state, "condition").index_select(0, slots) if "condition" in state else None
        logits, hidden = self.lm.step(text, audio, branch(state, "lm"), slots, condition)
        whole = leaf(state, "whole_settings").index_select(0, slots)
        real = leaf(state, "real_settings").index_select(0, slots)
        token = self._draw_text(logits, steps, whole, real, state, slots)
        spoken = self._draw_audio(hidden, token, steps, whole, real)
        lead = torch.cat((spoken[:, :1], leaf(state, "lead").index_select(0, slots)[:, :-1]), dim=1)
        self._remember(token, state, slots)
        for name, value in (
            ("steps", steps + 1),
            ("text", token),
            ("spoken", spoken),
            ("heard", heard),
            ("lead", lead),
        ):
            leaf(state, name).index_copy_(0, slots, value)
        return token, torch.cat((lead[:, -1:], spoken[:, 1:]), dim=1)

    def _inputs(self, steps: Tensor, heard: Tensor, state: State, slots: Tensor) -> tuple[Tensor, Tensor]:
        """What the language model is given: text (B,), and codes (B, K) of the speaker, then of the listener."""
        first, early = steps == 0, steps <= self.delay
        pad = self.lm.spec.audio_pad_token
        spoken = leaf(state, "spoken").index_select(0, slots)
        listener = torch.cat((heard[:, :1, 0], heard[:, 1:, -1]), dim=1)
        parts = []
        for part in (spoken, listener):
            parts += [part[:, :1].masked_fill(first[:, None], pad), part[:, 1:].masked_fill(early[:, None], pad)]
        text = leaf(state, "text").index_select(0, slots).masked_fill(first, self.spec.text_start_token)
        return text, torch.cat(parts, dim=1)

    def _draw_text(
        self, logits: Tensor, steps: Tensor, whole: Tensor, real: Tensor, state: State, slots: Tensor
    ) -> Tensor:
        temperature, penalty = real[:, 0], real[:, 3]
        logits = self._penalized(logits, penalty, whole[:, 4], state, slots)
        # Upstream multiplies the probability by exp(pad_mult), after the temperature.
        logits[:, self.spec.text_pad_token] += real[:, 2] * temperature
        return sample_rows(logits, temperature, whole[:, 0], whole[:, 2], 2 * steps, most=self.spec.most_candidates)

    def _penalized(self, logits: Tensor, penalty: Tensor, context: Tensor, state: State, slots: Tensor) -> Tensor:
        """Logits of what was said lately, divided by the penalty where positive and multiplied where not."""
        said = leaf(state, "said").index_select(0, slots)
        count = leaf(state, "said_count").index_select(0, slots)
        counts = torch.arange(said.shape[1], device=said.device) < torch.minimum(count, context)[:, None]
        old = logits.gather(1, said)
        new = torch.where(old >= 0, old / penalty[:, None], old * penalty[:, None])
        # What does not count is written to a column that is thrown away.
        wide = torch.cat((logits, logits[:, :1]), dim=1)
        wide.scatter_(1, said.masked_fill(~counts, logits.shape[1]), new)
        return wide[:, :-1]

    def _remember(self, token: Tensor, state: State, slots: Tensor) -> None:
        spec = self.spec
        silent = (token == spec.text_pad_token) | (token == spec.text_eop_token) | (token == spec.text_start_token)
        said = leaf(state, "said").index_select(0, slots)
        count = leaf(state, "said_count").index_select(0, slots)
        newer = torch.cat((token[:, None], said[:, :-1]), dim=1)
        leaf(state, "said").index_copy_(0, slots, torch.where(silent[:, None], said, newer))
        leaf(state, "said_count").index_copy_(0, slots, torch.where(silent, count, count + 1))

    def _draw_audio(self, hidden: Tensor, token: Tensor, steps: Tensor, whole: Tensor, real: Tensor) -> Tensor:
        temperature, candidates, seed = real[:, 1], whole[:, 1], whole[:, 3]
        count = self.spec.generated_audio_codebooks

        def draw(logits: Tensor, codebook: int) -> Tensor:
            counter = 2 * (steps * count + codebook) + 1  # the even ones are the text's
            return sample_rows(logits, temperature, candidates, seed, counter, most=self.spec.most_candidates)

        depformer = self.lm.depformer
        assert isinstance(depformer, Depformer), "this language model makes no sound"
        return depformer.sample(hidden, token, draw, codebooks=count)
