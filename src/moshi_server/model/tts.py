"""Text to speech as tensors: forced text in, frames of codes and sound out, for many streams; it knows no words.

A step of a stream is `think`, which samples a text token, and `speak`, which is told the token that stands instead and
makes the codes; `sound` decodes a frame that is whole. The order of events is upstream's (``LMGen`` of the PyTorch
package, ``moshi-core/src/tts_streaming.rs``): audio runs ``delay`` steps behind the text, and codebook k another
``delays[k]`` behind that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moshi_server.model.embedding import ZERO_TOKEN
from moshi_server.model.lm import LmModel
from moshi_server.model.mimi import Mimi
from moshi_server.model.ring_attention import in_place
from moshi_server.model.sampling import choose_rows, sample_rows, uniform
from moshi_server.model.streaming import State, branch, leaf

MOST_CANDIDATES = 250
"""From how many of the likeliest tokens is sampled at most."""
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class TtsSpec:
    """How a model speaks.

    Attributes:
        delay: steps that audio runs behind the text.
        delays: steps that each codebook of the language model runs behind the first sound.
        codebooks: how many are made and decoded; the least important may be left out.
        pad_token: the text token of a step in which nothing is said.
        pad_bonus: added to its logit; more makes slower speech.
        guidance: whether streams may be guided without their condition (two rows for each stream).
        without_text: what guides has no text either, and the text is not guided, as the PyTorch package's server does.
    """

    delay: int
    delays: tuple[int, ...]
    codebooks: int
    pad_token: int = 3
    pad_bonus: float = 0.0
    guidance: bool = False
    without_text: bool = True

    @property
    def reach(self) -> int:
        """Steps between a frame's first code and its last."""
        return max(self.delays)

    @property
    def first_sound(self) -> int:
        """Steps of a stream before the first that sounds."""
        return self.delay + self.reach


@dataclass(frozen=True)
class Sampling:
    """How one stream draws its tokens: the largest each time at ``temperature`` 0.

    ``guidance`` is the coefficient by which the conditioned logits are drawn away from the others; 1 leaves them alone.
    """

    temperature: float = 0.6
    text_top_k: int = 25
    audio_top_k: int = MOST_CANDIDATES
    seed: int = 0
    guidance: float = 1.0


class TtsModel(nn.Module):
    """A language model with a depth transformer, and Mimi's decoder."""

    delays: Tensor

    def __init__(self, mimi: Mimi, lm: LmModel, spec: TtsSpec) -> None:
        super().__init__()
        assert lm.depformer is not None, "this language model makes no sound"
        assert len(spec.delays) == lm.spec.audio_codebooks, "a delay for each codebook is needed"
        assert spec.codebooks <= min(lm.depformer.spec.codebooks, mimi.codebooks), "there are not so many codebooks"
        self.mimi = mimi
        self.lm = lm
        self.depformer = lm.depformer
        self.spec = spec
        delays = torch.tensor(spec.delays, device=lm.text_emb.weight.device)
        self.register_buffer("delays", delays, persistent=False)

    def init_state(self, slots: int, *, device: torch.device | str | None = None) -> State:
        """All-zero state: of the language model (rows ``slots`` and up are what guides) and of Mimi's decoder, and for
        each slot what was last said and made (``recent`` reaches back to the codes of the frame that is made whole),
        how it draws tokens, and what is added to its inputs.
        """
        device = device if device is not None else self.lm.text_emb.weight.device
        spec, rows = self.spec, slots * (2 if self.spec.guidance else 1)

        def whole(*shape: int) -> Tensor:
            return torch.zeros((slots, *shape), dtype=torch.int64, device=device)

        state: State = {
            "decoder": self.mimi.init_decoder_state(slots, device=device),
            "lm": self.lm.init_state(rows, device=device),
            "steps": whole(),
            "text": whole(),
            "codes": whole(spec.codebooks),
            "recent": whole(spec.codebooks, spec.reach),
            # text_top_k, audio_top_k, seed
            "whole_settings": whole(3),
            # temperature, guidance
            "real_settings": torch.zeros((slots, 2), dtype=torch.float32, device=device),
        }
        if self.lm.condition_provider is not None:
            state["condition"] = torch.zeros((rows, self.lm.spec.transformer.d_model), device=device)
        return state

    def reset_slots(self, state: State, slots: Sequence[int]) -> None:
        """Put these slots back to the beginning of a stream, in every part of the state."""
        from moshi_server.model.streaming import reset_state

        index = torch.tensor(list(slots), dtype=torch.int64, device=self.delays.device)
        total = len(leaf(state, "steps"))
        both = torch.cat((index, index + total)) if self.spec.guidance else index
        for name, value in state.items():
            rows = both if name in ("lm", "condition") else index
            reset_state({name: value}, rows, rings=not in_place(rows.device))

    @torch.inference_mode()
    def begin(
        self,
        state: State,
        slot: int,
        sampling: Sampling,
        *,
        condition: tuple[Tensor, Tensor] | None = None,
        voice: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> None:
        """Say how the stream in ``slot``, just reset, is spoken.

        Args:
            state: as `init_state` makes it.
            slot: of the stream.
            sampling: of its tokens.
            condition: what is added to each input, (D,) f32, and what to those that guide.
            voice: what is attended to, as `StreamingTransformer.keys_values` makes it, and what guides attends to.
        """
        total = len(leaf(state, "steps"))
        most = MOST_CANDIDATES
        seed = sampling.seed ^ sampling.seed >> 32
        numbers = [max(1, min(k, most)) for k in (sampling.text_top_k, sampling.audio_top_k)] + [seed & _MASK]
        device = self.delays.device
        leaf(state, "whole_settings")[slot] = torch.tensor(numbers, device=device)
        leaf(state, "real_settings")[slot] = torch.tensor([sampling.temperature, sampling.guidance], device=device)
        inner = branch(branch(state, "lm"), "transformer")
        for row, part in ((slot, 0), (slot + total, 1)) if self.spec.guidance else ((slot, 0),):
            if condition is not None:
                leaf(state, "condition")[row] = condition[part]
            if voice is not None:
                self.lm.transformer.attend_to(voice[part], inner, row)

    @torch.inference_mode()
    def think(self, state: State, slots: Tensor, *, guided: bool = True) -> tuple[Tensor, Tensor]:
        """Sample the next text token of the streams ``slots`` (B,), int64 and distinct.

        ``guided`` says whether any of them has been guided since it began, if the model guides at all. Returns the
        tokens (B,) int64 and hidden states (B or, guided, 2 * B, D) for `speak`, which must follow.
        """
        spec, lm = self.spec, self.lm.spec
        guided = guided and spec.guidance
        steps = leaf(state, "steps").index_select(0, slots)
        real = leaf(state, "real_settings").index_select(0, slots)
        whole = leaf(state, "whole_settings").index_select(0, slots)
        first = steps == 0
        text = leaf(state, "text").index_select(0, slots).masked_fill(first, lm.text_start_token)
        codes = leaf(state, "codes").index_select(0, slots)
        if spec.codebooks < lm.audio_codebooks:
            absent = codes.new_full((len(codes), lm.audio_codebooks - spec.codebooks), ZERO_TOKEN)
            codes = torch.cat((codes, absent), dim=1)
        codes = torch.where(steps[:, None] <= self.delays, lm.audio_pad_token, codes)
        rows = slots
        if guided:
            other = text
            if spec.without_text:
                other = torch.where(first, text, ZERO_TOKEN)
            text, codes = torch.cat((text, other)), codes.repeat(2, 1)
            rows = torch.cat((slots, slots + len(leaf(state, "steps"))))
        condition = leaf(state, "condition").index_select(0, rows) if "condition" in state else None
        logits, hidden = self.lm.step(text, codes, branch(state, "lm"), rows, condition)
        if guided:
            logits, without = logits.chunk(2)
            if not spec.without_text:
                logits = without + (logits - without) * real[:, 1:]
        if spec.pad_bonus:
            logits[:, spec.pad_token] += spec.pad_bonus
        counters = steps * (spec.codebooks + 1)
        tokens = sample_rows(logits, real[:, 0], whole[:, 0], whole[:, 2], counters, most=MOST_CANDIDATES)
        return tokens, hidden

    @torch.inference_mode()
    def speak(self, text: Tensor, hidden: Tensor, state: State, slots: Tensor, voiced: Tensor | None) -> Tensor:
        """End the step of `think` with the text tokens (B,) int64 that stand.

        ``voiced`` (V,) int64 are the rows of ``slots`` that are ``delay`` steps along and make codes; None for all.
        Returns the frames (B, codebooks) int64 that are whole now; they mean nothing before ``first_sound``.
        """
        spec = self.spec
        steps = leaf(state, "steps").index_select(0, slots)
        count = len(slots)
        if voiced is not None and not len(voiced):
            made = torch.full((count, spec.codebooks), ZERO_TOKEN, dtype=torch.int64, device=text.device)
        else:
            made = self._draw_codes(text, hidden, state, slots, steps, voiced)
        made = torch.where(steps[:, None] < self.delays[: spec.codebooks] + spec.delay, ZERO_TOKEN, made)
        seen = torch.cat((made[:, :, None], leaf(state, "recent").index_select(0, slots)), dim=2)
        back = (spec.reach - self.delays[: spec.codebooks])[None, :, None].expand(count, -1, 1)
        frame = seen.gather(2, back)[:, :, 0]
        for name, value in (("steps", steps + 1), ("text", text), ("codes", made), ("recent", seen[:, :, :-1])):
            leaf(state, name).index_copy_(0, slots, value)
        return frame

    def _draw_codes(
        self, text: Tensor, hidden: Tensor, state: State, slots: Tensor, steps: Tensor, voiced: Tensor | None
    ) -> Tensor:
        """The depth transformer's codes (B, codebooks), of the rows ``voiced``; elsewhere `ZERO_TOKEN`."""
        spec, count = self.spec, len(slots)
        guided = len(hidden) > count
        real = leaf(state, "real_settings").index_select(0, slots)
        whole = leaf(state, "whole_settings").index_select(0, slots)
        token, when = text, steps
        if voiced is not None:
            both = torch.cat((voiced, voiced + count)) if guided else voiced
            real, whole, hidden = real[voiced], whole[voiced], hidden[both]
            token, when = text[voiced], steps[voiced]
        counters = when[:, None] * (spec.codebooks + 1) + 1 + torch.arange(spec.codebooks, device=when.device)
        noise = uniform(whole[:, 2:], counters)

        def draw(logits: Tensor, codebook: int) -> Tensor:
            return choose_rows(logits, real[:, 0], whole[:, 1], noise[:, codebook], most=MOST_CANDIDATES)

        guidance = real[:, 1:] if guided else None
        made = self.depformer.sample(hidden, token, draw, codebooks=spec.codebooks, guidance=guidance)
        if voiced is None:
            return made
        all_rows = torch.full((count, spec.codebooks), ZERO_TOKEN, dtype=torch.int64, device=made.device)
        return all_rows.index_copy_(0, voiced, made)

    @torch.inference_mode()
    def sound(self, frames: Tensor, state: State, slots: Tensor) -> Tensor:
        """Whole frames (B, codebooks) int64 of the streams ``slots`` -> their sound (B, frame_size), within +-0.99."""
        return self.mimi.decode_step(frames.clamp(min=0), branch(state, "decoder"), slots).clamp(-0.99, 0.99)
