"""Mimi, the neural audio codec: waveform to codes and back at 12.5 frames a second, whole or frame by frame."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.errors import CheckpointError
from moshi_server.model.conv import CausalConv1d, CausalConvTranspose1d
from moshi_server.model.few_rows import speed_up_linears
from moshi_server.model.quantizer import QuantizerSpec, ResidualQuantizer, SplitQuantizer
from moshi_server.model.ring_attention import in_place as has_kernels
from moshi_server.model.seanet import SeanetDecoder, SeanetEncoder, SeanetSpec
from moshi_server.model.split import split_linears
from moshi_server.model.streaming import State, StreamingModule, branch
from moshi_server.model.transformer import StreamingTransformer, TransformerSpec

ROWS_AT_ONCE = 512
"""Streams whose frames a GPU convolves at once: more gain nothing, and these tensors are the largest of a step."""


def _mimi_transformer() -> TransformerSpec:
    return TransformerSpec(
        d_model=512,
        num_heads=8,
        num_layers=8,
        dim_feedforward=2048,
        gating="none",
        norm="layer_norm",
        context=250,
        max_period=10_000.0,
        layer_scale=0.01,
    )


@dataclass(frozen=True)
class MimiSpec:
    """Sizes of a Mimi; the defaults are Kyutai's v0.1 (``mimi-pytorch-e351c8d8@125.safetensors``).

    ``transformer.d_model`` is ``seanet.dimension``, and ``sample_rate / frame_rate`` a multiple of ``seanet.hop``.
    Without ``decoder`` the model only encodes, which is all that recognition needs.
    """

    sample_rate: int = 24_000
    frame_rate: float = 12.5
    seanet: SeanetSpec = field(default_factory=SeanetSpec)
    transformer: TransformerSpec = field(default_factory=_mimi_transformer)
    quantizer: QuantizerSpec = field(default_factory=QuantizerSpec)
    decoder: bool = True

    def __post_init__(self) -> None:
        if self.transformer.d_model != self.seanet.dimension:
            raise ValueError("transformer.d_model and seanet.dimension differ")
        if self.frame_size % self.seanet.hop or self.frame_size * self.frame_rate != self.sample_rate:
            raise ValueError("a frame is not a whole number of latent frames")
        if not 1 <= self.quantizer.semantic <= self.quantizer.codebooks:
            raise ValueError("quantizer.semantic is not among quantizer.codebooks")

    @property
    def frame_size(self) -> int:
        """Samples per frame of codes."""
        return int(self.sample_rate / self.frame_rate)

    @property
    def stride(self) -> int:
        """Latent frames per frame of codes."""
        return self.frame_size // self.seanet.hop

    def to_json(self) -> str:
        """What a checkpoint carries under ``mimi_spec`` in its header."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MimiSpec:
        """The inverse of ``to_json``. Raises CheckpointError where the text describes no Mimi."""
        try:
            values: dict[str, Any] = json.loads(text)
            seanet = dict(values.pop("seanet"))
            return cls(
                seanet=SeanetSpec(**(seanet | {"ratios": tuple(seanet["ratios"])})),
                transformer=TransformerSpec(**values.pop("transformer")),
                quantizer=QuantizerSpec(**values.pop("quantizer")),
                **values,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint's mimi_spec describes no Mimi: {error}") from error


class MimiEncoder(StreamingModule):
    """Waveform (B, 1, frame_size * T) -> latents (B, dimension, T) before quantization."""

    def __init__(self, spec: MimiSpec) -> None:
        super().__init__()
        dimension, stride = spec.seanet.dimension, spec.stride
        self.stride = stride
        self.seanet = SeanetEncoder(spec.seanet)
        self.transformer = StreamingTransformer(spec.transformer)
        self.downsample = (
            CausalConv1d(dimension, dimension, 2 * stride, stride=stride, bias=False, replicate=True)
            if stride > 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """The whole waveform, differentiably."""
        latents: Tensor = self.transformer(self.seanet(x).transpose(1, 2)).transpose(1, 2)
        return latents if self.downsample is None else self.downsample(latents)

    def step(self, x: Tensor, state: State, slots: Tensor) -> Tensor:
        """The next piece of each slot's waveform, a whole number of frames; the same numbers as one frame a call."""
        x = self._convolve(x, branch(state, "seanet"), slots)
        x = self.transformer.step(x.transpose(1, 2), branch(state, "transformer"), slots, piece=self.stride)
        x = x.transpose(1, 2)
        return x if self.downsample is None else self.downsample.step(x, branch(state, "downsample"), slots)

    def _convolve(self, x: Tensor, state: State, slots: Tensor) -> Tensor:
        if not x.is_cuda or len(x) <= ROWS_AT_ONCE:
            return self.seanet.step(x, state, slots)
        parts = zip(torch.split(x, ROWS_AT_ONCE), torch.split(slots, ROWS_AT_ONCE), strict=True)
        return torch.cat([self.seanet.step(some, state, few) for some, few in parts])


class MimiDecoder(StreamingModule):
    """Dequantized latents (B, dimension, T) -> waveform (B, 1, frame_size * T)."""

    def __init__(self, spec: MimiSpec) -> None:
        super().__init__()
        dimension, stride = spec.seanet.dimension, spec.stride
        self.upsample = (
            CausalConvTranspose1d(dimension, dimension, 2 * stride, stride=stride, bias=False, depthwise=True)
            if stride > 1
            else None
        )
        self.transformer = StreamingTransformer(spec.transformer)
        self.seanet = SeanetDecoder(spec.seanet)

    def forward(self, x: Tensor) -> Tensor:
        """All latents at once."""
        if self.upsample is not None:
            x = self.upsample(x)
        waveform: Tensor = self.seanet(self.transformer(x.transpose(1, 2)).transpose(1, 2))
        return waveform

    def step(self, x: Tensor, state: State, slots: Tensor) -> Tensor:
        """The next latents of each slot."""
        if self.upsample is not None:
            x = self.upsample.step(x, branch(state, "upsample"), slots)
        x = self.transformer.step(x.transpose(1, 2), branch(state, "transformer"), slots).transpose(1, 2)
        return self.seanet.step(x, branch(state, "seanet"), slots)


class Mimi(nn.Module):
    """The codec. Encoder and decoder have separate states, so that a stream pays only for what it uses.

    Source: https://arxiv.org/abs/2410.00037, section 3.3. After changing the quantizer's centroids call
    ``quantizer.refresh()``.
    """

    def __init__(self, spec: MimiSpec | None = None) -> None:
        super().__init__()
        self.spec = spec = spec or MimiSpec()
        self.encoder = MimiEncoder(spec)
        self.quantizer = SplitQuantizer(spec.seanet.dimension, spec.quantizer, decoder=spec.decoder)
        self.decoder = MimiDecoder(spec) if spec.decoder else None

    @property
    def frame_size(self) -> int:
        """Samples per frame of codes."""
        return self.spec.frame_size

    @property
    def codebooks(self) -> int:
        """Codes per frame."""
        return self.spec.quantizer.codebooks

    def prepare(self) -> None:
        """Lay weights out for stepping where they are. Call it again after they change, or were moved.

        On a GPU the linear layers are replaced by split ones (`moshi_server.model.split`), which do not move or change.
        """
        for module in self.modules():
            if isinstance(module, CausalConv1d | CausalConvTranspose1d | ResidualQuantizer | StreamingTransformer):
                module.prepare()
        if has_kernels(next(self.encoder.parameters()).device):
            split_linears(self)
        speed_up_linears(self)

    def latents(self, pcm: Tensor) -> Tensor:
        """(B, 1, L) -> (B, dimension, T) before quantization, differentiable; zeros fill up the last frame."""
        latents: Tensor = self.encoder(functional.pad(pcm, (0, -pcm.shape[-1] % self.frame_size)))
        return latents

    @torch.no_grad()
    def encode(self, pcm: Tensor) -> Tensor:
        """(B, 1, L) in -1..1 -> codes (B, K, T) int64; zeros fill up the last frame."""
        return self.quantizer.encode(self.latents(pcm).transpose(1, 2)).transpose(1, 2)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k, T) int64, k <= K -> (B, 1, frame_size * T)."""
        waveform: Tensor = self._decoder(self.quantizer.decode(codes.transpose(1, 2)).transpose(1, 2))
        return waveform

    def init_encoder_state(
        self, slots: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """State for ``slots`` streams of ``encode_step``."""
        return self.encoder.init_state(slots, device=device, dtype=dtype)

    def init_decoder_state(
        self, slots: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """State for ``slots`` streams of ``decode_step``."""
        return self._decoder.init_state(slots, device=device, dtype=dtype)

    @torch.no_grad()
    def encode_step(self, pcm: Tensor, state: State, slots: Tensor) -> Tensor:
        """One frame (B, frame_size) of each of the streams ``slots`` (B,) -> its codes (B, K) int64."""
        return self.encode_frames(pcm, state, slots)[:, 0]

    @torch.no_grad()
    def encode_frames(self, pcm: Tensor, state: State, slots: Tensor) -> Tensor:
        """As N times ``encode_step``, but cheaper: (B, N * frame_size) -> codes (B, N, K) int64.

        The N frames must fit the encoder's ring: N * ``stride`` <= ``transformer.context``.
        """
        latents = self.encoder.step(pcm[:, None], state, slots)
        return self.quantizer.encode(latents.transpose(1, 2))

    @torch.no_grad()
    def decode_step(self, codes: Tensor, state: State, slots: Tensor) -> Tensor:
        """One frame's codes (B, k) int64, k <= K, of each of the streams ``slots`` (B,) -> (B, frame_size)."""
        return self._decoder.step(self.quantizer.decode(codes)[..., None], state, slots)[:, 0]

    @property
    def _decoder(self) -> MimiDecoder:
        assert self.decoder is not None, "this Mimi was built to encode only"
        return self.decoder
