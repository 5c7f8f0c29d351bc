"""Causal convolutions over time, whole or piece by piece; shapes are (B, channels, time) throughout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moshi_server.model.products import ConvProducts
from moshi_server.model.ring_attention import in_place as has_kernels
from moshi_server.model.split import SplitWeight, split
from moshi_server.model.streaming import State, StreamingModule, leaf

_FEW = 16
"""Windows of no more numbers are multiplied as they are: a tile of split ones would be mostly empty."""


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
        self._products: ConvProducts | None = None
        self._by_window: Tensor | SplitWeight | None = None  # (kernel * in, out)

    def prepare(self) -> None:
        """Lay the weights out for ``step``. Call it again after they change."""
        weight = self.conv.weight
        plain = self.conv.dilation[0] == 1
        self._products = ConvProducts(self.conv) if plain and weight.is_cpu else None
        self._by_window = None
        if plain and has_kernels(weight.device) and weight.dtype is torch.float32:
            laid = weight.detach().permute(2, 1, 0).flatten(0, 1)
            self._by_window = laid.contiguous() if len(laid) <= _FEW else split(laid)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T) -> (B, out, T / stride), from the beginning of a stream."""
        if self.history:
            x = functional.pad(x, (self.history, 0), mode="replicate" if self.replicate else "constant")
        y: Tensor = self.conv(x)
        return y

    def init_state(
        self, slots: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """``previous`` (slots, history, in), and for ``replicate`` whether a slot has ``begun`` (slots, 1, 1)."""
        if not self.history:
            return {}
        device, dtype = self.placement(device, dtype)
        state: State = {"previous": torch.zeros(slots, self.history, self.conv.in_channels, device=device, dtype=dtype)}
        if self.replicate:
            state["begun"] = torch.zeros(slots, 1, 1, device=device, dtype=torch.bool)
        return state

    def step(
        self, x: Tensor, state: State, slots: Tensor, *, elu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        """(B, in, T) -> (B, out, T / stride), going on from where each slot was.

        With ``elu``, of ``x`` put through an exponential linear unit; ``residual`` is added to what comes out.
        """
        x = x.transpose(1, 2)
        if self._by_window is not None and x.is_cuda:
            return self._step_on_gpu(x.contiguous(), state, slots, self._by_window, elu, residual)
        if elu:
            x = functional.elu(x)
        if self.history:
            x = self._after_history(x, state, slots)
        if self._products is not None and x.is_cpu:
            y = self._products(x.contiguous()).transpose(1, 2)
        else:
            conv, x = self.conv, x.transpose(1, 2)
            # Only in two dimensions are channels that lie next to each other taken as they are.
            weight, dilation = conv.weight.unsqueeze(2), (1, conv.dilation[0])
            y = functional.conv2d(x.unsqueeze(2), weight, conv.bias, (1, conv.stride[0]), 0, dilation).squeeze(2)
        return y if residual is None else y.add_(residual)

    def _after_history(self, x: Tensor, state: State, slots: Tensor) -> Tensor:
        """(B, T, in) -> (B, history + T, in); the last of it is the history of the next step."""
        previous = leaf(state, "previous")
        past = previous.index_select(0, slots)
        if self.replicate:
            begun = leaf(state, "begun")
            past = torch.where(begun.index_select(0, slots), past, x[:, :1])
            begun.index_fill_(0, slots, True)
        x = torch.cat([past, x], dim=1)
        previous.index_copy_(0, slots, x[:, -self.history :])
        return x

    def _step_on_gpu(
        self,
        x: Tensor,
        state: State,
        slots: Tensor,
        weight: Tensor | SplitWeight,
        elu: bool,
        residual: Tensor | None,
    ) -> Tensor:
        from moshi_server.model.conv_kernels import convolve

        past: Tensor | None = None
        if self.replicate or self.history > x.shape[1]:
            x, elu = self._after_history(functional.elu(x) if elu else x, state, slots), False
        elif self.history:
            past = leaf(state, "previous")
        added = None if residual is None else residual.transpose(1, 2).contiguous()
        bias, (stride,) = self.conv.bias, self.conv.stride
        return convolve(x, weight, bias, stride, past=past, slots=slots, elu=elu, residual=added).transpose(1, 2)


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
        self.depthwise = depthwise
        self._by_pair: SplitWeight | None = None  # (2 * in, stride * out)
        self._bias_by_pair: Tensor | None = None

    def prepare(self) -> None:
        """Lay the weights out for ``step``. Call it again after they change; states made before are not valid then."""
        weight, (stride,) = self.convtr.weight, self.convtr.stride
        self._by_pair = None
        if self.depthwise or self.overlap != stride or weight.dtype is not torch.float32:
            return
        if has_kernels(weight.device):
            # A piece of the output is what one sample says later on, and what the next says at once.
            now, later = weight.detach().permute(0, 2, 1).chunk(2, dim=1)  # (in, stride, out)
            pair = torch.cat((later, now)).flatten(1)
            bias = self.convtr.bias
            self._by_pair = split(pair)
            self._bias_by_pair = None if bias is None else bias.detach().repeat(stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T) -> (B, out, T * stride), from the beginning of a stream."""
        y: Tensor = self.convtr(x)
        return y[..., : y.shape[-1] - self.overlap]

    def init_state(
        self, slots: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """``partial`` (slots, out, overlap): what earlier input adds to the samples to come.

        Once `prepare` has laid weights out for a GPU, ``previous`` (slots, 1, in) instead: that input.
        """
        if not self.overlap:
            return {}
        device, dtype = self.placement(device, dtype)
        if self._by_pair is not None:
            return {"previous": torch.zeros(slots, 1, self.convtr.in_channels, device=device, dtype=dtype)}
        return {"partial": torch.zeros(slots, self.convtr.out_channels, self.overlap, device=device, dtype=dtype)}

    def step(self, x: Tensor, state: State, slots: Tensor, *, elu: bool = False) -> Tensor:
        """(B, in, T) -> (B, out, T * stride), going on from where each slot was; ``elu`` as for `CausalConv1d.step`."""
        if self._by_pair is not None and x.is_cuda:
            return self._step_on_gpu(x.transpose(1, 2).contiguous(), state, slots, self._by_pair, elu)
        y: Tensor = self.convtr(functional.elu(x) if elu else x)
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

    def _step_on_gpu(self, x: Tensor, state: State, slots: Tensor, weight: SplitWeight, elu: bool) -> Tensor:
        from moshi_server.model.conv_kernels import convolve

        past, bias = leaf(state, "previous"), self._bias_by_pair
        y = convolve(x, weight, bias, 1, past=past, slots=slots, elu=elu)
        return y.view(len(x), -1, self.convtr.out_channels).transpose(1, 2)
