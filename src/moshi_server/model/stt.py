"""Speech to text as tensors: a frame of audio in, a text token out, for many streams; it knows no words and no time.

The order of events is that of upstream's Rust server (``moshi-core/src/asr.rs``): a frame's codes reach the language
model at the next step, and the first step sees the initial tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moshi_server.model.lm import LmModel
from moshi_server.model.mimi import Mimi
from moshi_server.model.sampling import sample
from moshi_server.model.small_lm import SmallLm, suits
from moshi_server.model.streaming import State, branch, leaf


class SttModel(nn.Module):
    """Mimi's encoder and a language model, fed its own text.

    ``condition`` (D,), f32, is added to every input. ``temperature`` 0 is greedy; above it, a stream draws by the
    ``seed`` of its slot, 0 after a reset, so that what it says never depends on the others.
    """

    def __init__(self, mimi: Mimi, lm: LmModel, *, condition: Tensor | None = None, temperature: float = 0.0) -> None:
        super().__init__()
        assert mimi.codebooks == lm.spec.audio_codebooks, "Mimi was not loaded with the language model's codebooks"
        self.mimi = mimi
        self.lm = lm
        self.temperature = temperature
        self.register_buffer("condition", condition, persistent=False)
        self._small: SmallLm | None = None

    def prepare(self) -> None:
        """Once nothing of the language model changes any more: let one that is small and on a CPU step faster.

        States made before are not valid any more.
        """
        self._small = SmallLm(self.lm, self.get_buffer("condition")) if suits(self.lm) else None

    @property
    def frame_size(self) -> int:
        """Samples a step takes of each stream."""
        return self.mimi.frame_size

    def init_state(self, slots: int, *, device: torch.device | str | None = None, eight_bit_kv: bool = False) -> State:
        """All-zero state: of Mimi and the language model, and for each slot, int64, its last ``text`` and ``codes``,
        the number of ``steps`` it has made and the ``seed`` of its sampling.

        With ``eight_bit_kv`` the language model's keys and values are held in 8 bits.
        """
        device = device if device is not None else self.lm.text_emb.weight.device

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        if self._small is None:
            lm = self.lm.init_state(slots, device=device, dtype=torch.int8 if eight_bit_kv else None)
        else:
            assert not eight_bit_kv, "a small model on a CPU holds its keys and values as they are"
            lm = self._small.init_state(slots)
        return {
            "mimi": self.mimi.init_encoder_state(slots, device=device),
            "lm": lm,
            "text": zeros(slots),
            "codes": zeros(slots, self.lm.spec.audio_codebooks),
            "steps": zeros(slots),
            "seed": zeros(slots),
        }

    @torch.inference_mode()
    def step(self, pcm: Tensor, state: State, slots: Tensor) -> tuple[Tensor, Tensor]:
        """One frame ``pcm`` (B, frame_size), f32 at 24 kHz, of each of the streams ``slots`` (B,), int64 and distinct.

        Returns the text tokens (B,) int64 and each extra head's probability of its first class (B, H) f32.
        """
        codes = self.mimi.encode_step(pcm, branch(state, "mimi"), slots)
        tokens, heads, _ = self.step_codes(codes, state, slots)
        return tokens, heads

    @torch.inference_mode()
    def encode_frames(self, pcm: Tensor, state: State, slots: Tensor) -> Tensor:
        """The codes (B, N, K) int64 of the next N frames (B, N * frame_size), for N times ``step_codes``."""
        return self.mimi.encode_frames(pcm, branch(state, "mimi"), slots)

    @torch.inference_mode()
    def step_codes(self, codes: Tensor, state: State, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As ``step``, from the frame's codes (B, K) int64; returns the text logits (B, V) f32 as well."""
        if self._small is not None:
            return self._small_step(self._small, codes, state, slots)
        spec = self.lm.spec
        steps = leaf(state, "steps").index_select(0, slots)
        first = steps == 0
        text = leaf(state, "text").index_select(0, slots).masked_fill(first, spec.text_start_token)
        audio = leaf(state, "codes").index_select(0, slots).masked_fill(first[:, None], spec.audio_pad_token)
        logits, hidden = self.lm.step(text, audio, branch(state, "lm"), slots, self.get_buffer("condition"))
        tokens = sample(logits, self.temperature, leaf(state, "seed").index_select(0, slots), steps)
        leaf(state, "text").index_copy_(0, slots, tokens)
        leaf(state, "codes").index_copy_(0, slots, codes)
        leaf(state, "steps").index_copy_(0, slots, steps + 1)
        return tokens, self.lm.extra_heads(hidden), logits

    def _small_step(self, lm: SmallLm, codes: Tensor, state: State, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        texts, heard, steps = leaf(state, "text"), leaf(state, "codes"), leaf(state, "steps")
        count = steps.index_select(0, slots)
        text, audio = texts.index_select(0, slots), heard.index_select(0, slots)
        logits, heads = lm.step(text, audio, count == 0, branch(state, "lm"), slots)
        if self.temperature > 0:
            tokens = sample(logits, self.temperature, leaf(state, "seed").index_select(0, slots), count)
        else:
            tokens = logits.argmax(-1)
        texts.index_copy_(0, slots, tokens)
        heard.index_copy_(0, slots, codes)
        steps.index_copy_(0, slots, count + 1)
        return tokens, heads, logits
