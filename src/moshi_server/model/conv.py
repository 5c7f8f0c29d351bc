"""Causal convolutions over time, whole or piece by piece; shapes are (B, channels, time) throughout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model.streaming import State, StreamingModule, leaf

# Measured on a CPU, with Mimi's sizes and with tiny ones; at a hundred windows the library's convolution is as fast.
_FEW_WINDOWS = 16


class CausalConv1d(StreamingModule):
    """A convolution that sees only the past: ``kernel - stride`` samples of history come before the input.

    ``step`` and ``forward`` take a multiple of ``stride`` samples and give ``time / stride`` of them.
    Before the beginning of a stream lie zeros, or with ``replicate`` copies of its first sample.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, bias=bias)
        self.history = (kernel_size - 1) * dilation + 1 - stride
        assert self.history >= 0, "a stride longer than the kernel would skip samples"
        self.replicate = replicate and self.history > 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T) -> (B, out, T / stride), from the beginning of a stream."""
        if self.history:
            x = functional.pad(x, (self.history, 0), mode="replicate" if self.replicate else "constant")
        y: Tensor = self.conv(x)
        return y

    def init_state(
        self, slots: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """``previous`` (slots, in, history), and for ``replicate`` whether a slot has ``begun`` (slots, 1, 1)."""
        if not self.history:
            return {}
        device, dtype = self.placement(device, dtype)
        state: State = {"previous": torch.zeros(slots, self.conv.in_channels, self.history, device=device, dtype=dtype)}
        if self.replicate:
            state["begun"] = torch.zeros(slots, 1, 1, device=device, dtype=torch.bool)
        return state

    def step(self, x: Tensor, state: State, slots: Tensor) -> Tensor:
        """(B, in, T) -> (B, out, T / stride), going on from where each slot was."""
        if self.history:
            previous = leaf(state, "previous")
            past = previous.index_select(0, slots)
            if self.replicate:
                begun = leaf(state, "begun")
                past = torch.where(begun.index_select(0, slots), past, x[..., :1])
                begun.index_fill_(0, slots, True)
            # Laid out by time, then channel, as `_convolve` wants it and its output is.
            x = torch.cat([past.transpose(1, 2), x.transpose(1, 2)], dim=1).transpose(1, 2)
            previous.index_copy_(0, slots, x[..., -self.history :])
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        """What ``self.conv`` gives, faster on a CPU: few windows as one product, many in two dimensions.

        Only a two-dimensional convolution takes channels that lie next to each other as they are; for the narrow, long
        layers next to the waveform that is up to twice as fast.
        """
        conv = self.conv
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        if conv.dilation[0] == 1 and kernel > 1 and x.shape[-1] - kernel < _FEW_WINDOWS * stride:
            windows = x.unfold(-1, kernel, stride).transpose(1, 2).flatten(2)
            return functional.linear(windows, conv.weight.flatten(1), conv.bias).transpose(1, 2)
        weight, dilation = conv.weight.unsqueeze(2), (1, conv.dilation[0])
        return functional.conv2d(x.unsqueeze(2), weight, conv.bias, (1, stride), 0, dilation).squeeze(2)


class CausalConvTranspose1d(StreamingModule):
    """A transposed convolution whose output overlaps into the future: the tail is kept until its time comes.

    Gives ``time * stride`` samples. ``depthwise`` filters every channel by itself (in and out must agree).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        bias: bool = True,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        groups = in_channels if depthwise else 1
        self.convtr = nn.ConvTranspose1d(
            in_channels, out_channels, kernel_size, stride=stride, bias=bias, groups=groups
        )
        self.overlap = kernel_size - stride
        assert self.overlap >= 0, "a stride longer than the kernel would leave gaps"

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T) -> (B, out, T * stride), from the beginning of a stream."""
        y: Tensor = self.convtr(x)
        return y[..., : y.shape[-1] - self.overlap]

    def init_state(
        self, slots: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """``partial`` (slots, out, overlap): what earlier input adds to the samples to come."""
        if not self.overlap:
            return {}
        device, dtype = self.placement(device, dtype)
        return {"partial": torch.zeros(slots, self.convtr.out_channels, self.overlap, device=device, dtype=dtype)}

    def step(self, x: Tensor, state: State, slots: Tensor) -> Tensor:
        """(B, in, T) -> (B, out, T * stride), going on from where each slot was."""
        y: Tensor = self.convtr(x)
        if not self.overlap:
            return y
        partial = leaf(state, "partial")
        y[..., : self.overlap] += partial.index_select(0, slots)
        tail = y[..., -self.overlap :]
        if self.convtr.bias is not None:
            # The next step's convolution adds the bias to these samples again.
            tail = tail - self.convtr.bias[:, None]
        partial.index_copy_(0, slots, tail)
        return y[..., : -self.overlap]
