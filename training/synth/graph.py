"""Runs an ONNX graph of the kinds Kokoro's is made of with PyTorch, so that it can be spoken on a GPU.

Dynamically quantized products are read back into float ones. Shapes and other whole numbers stay on the CPU.
It knows only the operators and attributes that occur there.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as f

_TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float32, 11: torch.float64}


def _reduced(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, **_: Any) -> Tensor:
        return op(x, dim=tuple(axes.tolist()) if axes is not None else tuple(range(x.dim())), keepdim=bool(keepdims))

    return run


def _gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    index = index.to(x.device)
    index = torch.where(index < 0, index + x.shape[axis], index)
    shape = [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]]
    return x.index_select(axis, index.reshape(-1)).reshape(shape)


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    cuts = [slice(None)] * x.dim()
    for i, axis in enumerate(range(len(starts)) if axes is None else axes.tolist()):
        step = int(steps[i]) if steps is not None else 1
        if step < 0:
            raise NotImplementedError("a slice backwards")
        cuts[axis] = slice(int(starts[i]), int(ends[i]), step)
    return x[tuple(cuts)]


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(shape.tolist())])


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + axes.numel()
    for axis in sorted(a % rank for a in axes.reshape(-1).tolist()):
        x = x.unsqueeze(axis)
    return x


def _pads(pads: list[int]) -> int:
    half = len(pads) // 2
    if pads[:half] != pads[half:] or half != 1:
        raise NotImplementedError(f"padding {pads}")
    return pads[0]


def _conv(x: Tensor, w: Tensor, b: Tensor | None = None, **a: Any) -> Tensor:
    return f.conv1d(x, w, b, a["strides"][0], _pads(a["pads"]), a["dilations"][0], a["group"])


def _conv_transpose(x: Tensor, w: Tensor, b: Tensor | None = None, **a: Any) -> Tensor:
    more = a.get("output_padding", [0])[0]
    return f.conv_transpose1d(x, w, b, a["strides"][0], _pads(a["pads"]), more, a["group"], a["dilations"][0])


def _resize(x: Tensor, roi: Any, scales: Tensor | None = None, sizes: Tensor | None = None, **a: Any) -> Tensor:
    factor = float(scales[-1]) if scales is not None else int(sizes[-1]) / x.shape[-1]  # type: ignore[index]
    length = int(np.floor(x.shape[-1] * factor))
    if a["mode"] == b"nearest":
        at = (torch.arange(length, device=x.device) / factor).floor().long().clamp(max=x.shape[-1] - 1)
        return x[..., at]
    at = ((torch.arange(length, device=x.device, dtype=torch.float64) + 0.5) / factor - 0.5).clamp(0, x.shape[-1] - 1)
    left = at.floor().long()
    part = (at - left).to(x.dtype)
    return x[..., left] * (1 - part) + x[..., (left + 1).clamp(max=x.shape[-1] - 1)] * part


def _stft(x: Tensor, step: Tensor, window: Tensor, length: Tensor | None = None, **_: Any) -> Tensor:
    size = int(length) if length is not None else window.numel()
    frames = x.reshape(x.shape[0], -1).unfold(1, size, int(step))
    return torch.view_as_real(torch.fft.rfft(frames * window))


def _layer_norm(x: Tensor, w: Tensor, b: Tensor, *, epsilon: float, **_: Any) -> Tensor:
    return f.layer_norm(x, x.shape[-1:], w, b, epsilon)


def _skip_norm(x: Tensor, skip: Tensor, w: Tensor, b: Tensor, *, epsilon: float) -> Tensor:
    return f.layer_norm(x + skip, x.shape[-1:], w, b, epsilon)


def _fused_product(x: Tensor, y: Tensor, *, alpha: float, transA: int = 0, transB: int = 0, **_: Any) -> Tensor:
    return alpha * ((x.mT if transA else x) @ (y.mT if transB else y))


def _scatter(x: Tensor, index: Tensor, updates: Tensor, **_: Any) -> Tensor:
    out = x.clone()
    out[tuple(index.to(x.device).unbind(-1))] = updates
    return out


def _lstm(x: Tensor, flat: list[Tensor], hidden: int) -> Tensor:
    zero = x.new_zeros(2, x.shape[1], hidden)
    out = torch.lstm(x.contiguous(), (zero, zero), flat, True, 1, 0.0, False, True, False)[0]
    return out.unflatten(-1, (2, hidden)).transpose(1, 2)


OPS: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "MatMul": torch.matmul,
    "And": torch.logical_and,
    "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "Where": torch.where,
    "Sqrt": torch.sqrt, "Sin": torch.sin, "Cos": torch.cos, "Exp": torch.exp, "Tanh": torch.tanh,
    "Atan": lambda x: x.nan_to_num().atan(),  # of 0 / 0 in digital silence
    "Sigmoid": torch.sigmoid, "Round": torch.round, "Floor": torch.floor,
    "Div": lambda x, y: x / y if x.is_floating_point() else x // y,
    "ReduceMean": _reduced(torch.mean), "ReduceSum": _reduced(torch.sum),
    "Shape": lambda x, **_: torch.tensor(x.shape),
    "Gather": _gather, "Slice": _slice, "Reshape": _reshape, "Unsqueeze": _unsqueeze,
    "Squeeze": lambda x, axes: x.squeeze(tuple(axes.tolist())),
    "Transpose": lambda x, *, perm: x.permute(perm),
    "Concat": lambda *xs, axis: torch.cat(xs, axis),
    "Split": lambda x, sizes, *, axis=0: list(x.split(sizes.tolist(), axis)),
    "Expand": lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "Cast": lambda x, *, to, **_: x.to(_TYPES[to]).cpu() if to == 7 else x.to(_TYPES[to]),
    "ConstantOfShape": lambda shape, *, value: value.expand(shape.tolist()),
    "Range": lambda a, b, c: torch.arange(int(a), int(b), int(c)),
    "NonZero": lambda x: x.nonzero().t(),
    "CumSum": lambda x, axis, **_: x.cumsum(int(axis)),
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "DequantizeLinear": lambda x, scale, zero=None: (
        (x.to(scale.device).float() - (0 if zero is None else zero.to(scale.device).float())) * scale
    ),
    "Pad": lambda x, pads, *_, mode: f.pad(x, (int(pads[len(pads) // 2 - 1]), int(pads[-1])), mode.decode()),
    "Softmax": lambda x, *, axis: x.softmax(axis),
    "LeakyRelu": lambda x, *, alpha: f.leaky_relu(x, alpha),
    "FastGelu": lambda x, b=None: f.gelu(x if b is None else x + b, approximate="tanh"),
    "LayerNormalization": _layer_norm, "SkipLayerNormalization": _skip_norm, "FusedMatMul": _fused_product,
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Resize": _resize, "STFT": _stft, "ScatterND": _scatter,
}  # fmt: skip
_MIXING = {
    "Add", "Sub", "Mul", "Div", "Pow", "Equal", "Greater", "GreaterOrEqual", "Less", "And", "Where", "Concat",
    "MatMul", "ScatterND",
}  # fmt: skip
"""Operators whose inputs must be on one device."""


class Graph:
    """A model's graph, ready to be run."""

    def __init__(self, path: Path, outputs: list[str], device: str) -> None:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(str(path)).graph
        self.device = torch.device(device)
        self.outputs = outputs
        arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        nodes = [n for n in graph.node if n.op_type != "Constant"]
        steps = _unquantized(nodes, arrays)
        self.constants: dict[str, Tensor] = {}
        self.lstms: dict[str, list[Tensor]] = {}
        for step in steps:
            if step[0] == "DynamicQuantizeLSTM":
                self.lstms[step[2][0]] = self._lstm_weights([arrays.get(i) for i in step[1]])
                step[1][1:] = []
        steps = _needed(steps, outputs)
        for name in {i for step in steps for i in step[1] if i in arrays}:
            value = torch.from_numpy(np.array(arrays[name]))
            self.constants[name] = value.to(self.device) if value.is_floating_point() else value
        for step in steps:
            if step[0] == "ConstantOfShape":
                step[3]["value"] = torch.from_numpy(np.array(numpy_helper.to_array(step[3]["value"])))
        last = {name: i for i, step in enumerate(steps) for name in step[1]}
        self.steps = [
            (*step, [n for n in set(step[1]) if last[n] == i and n not in self.constants and n not in outputs])
            for i, step in enumerate(steps)
        ]

    def _lstm_weights(self, inputs: list[np.ndarray | None]) -> list[Tensor]:
        """Of com.microsoft's quantized LSTM: gates in the order i, o, f, c and weights with the inputs in rows."""
        _, w, r, b, _, _, _, _, w_scale, w_zero, r_scale, r_zero = inputs
        if w is None or r is None or b is None or w_scale is None or r_scale is None:
            raise ValueError("an LSTM whose weights are no constants")

        def whole(q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
            spread = lambda v: v.reshape(2, 1, -1).astype(np.float32)  # noqa: E731
            values = (q.astype(np.float32) - (spread(zero) if zero is not None else 0)) * spread(scale)
            return np.asarray(values.transpose(0, 2, 1))

        def gates(x: np.ndarray) -> Tensor:
            i, o, forget, c = np.split(x, 4)
            return torch.from_numpy(np.ascontiguousarray(np.concatenate([i, forget, c, o]))).to(self.device)

        ws, rs = whole(w, w_scale, w_zero), whole(r, r_scale, r_zero)
        flat = []
        for way in range(2):
            first, second = np.split(b[way], 2)
            flat += [gates(ws[way]), gates(rs[way]), gates(first), gates(second)]
        return flat

    def _placed(self, value: Tensor) -> Tensor:
        return value.to(self.device) if value.is_floating_point() and value.device != self.device else value

    @torch.inference_mode()
    def run(self, _: None, feeds: dict[str, Any]) -> list[np.ndarray]:
        """As an onnxruntime session's: always the outputs named at the beginning."""
        values: dict[str, Any] = dict(self.constants)
        for name, array in feeds.items():
            tensor = torch.from_numpy(np.asarray(array))
            values[name] = tensor.to(self.device) if tensor.is_floating_point() else tensor
        for op, inputs, outputs, attributes, done in self.steps:
            args = [self._placed(values[i]) if i else None for i in inputs]
            while args and args[-1] is None:
                args.pop()
            if op in _MIXING and len({a.device for a in args if a.dim() or op == "Concat"}) > 1:
                args = [a.to(self.device) for a in args]
            if op == "DynamicQuantizeLSTM":
                result = _lstm(args[0], self.lstms[outputs[0]], attributes["hidden_size"])
            else:
                result = OPS[op](*args, **attributes)
            values |= dict(zip(outputs, result if isinstance(result, list) else [result], strict=False))
            for name in done:
                values.pop(name, None)
        return [values[name].float().cpu().numpy() for name in self.outputs]


Step = tuple[str, list[str], list[str], dict[str, Any]]


def _unquantized(nodes: list[Any], arrays: dict[str, np.ndarray]) -> list[Step]:
    """The steps, every chain quantize, integer product, (add the bias,) cast, scale made one product of floats."""
    import onnx

    made = {o: n for n in nodes for o in n.output}
    users: dict[str, list[Any]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            users[name].append(node)
    replaced: dict[str, Step] = {}  # by the output of the last node of a chain
    gone: set[int] = set()
    for node in nodes:
        if node.op_type not in ("ConvInteger", "MatMulInteger"):
            continue
        quantize = made[node.input[0]]
        chain = [node, users[node.output[0]][0]]
        bias = None
        if chain[-1].op_type == "Add":
            source = made[next(i for i in chain[-1].input if i != node.output[0])]
            while source.op_type != "Div":
                source = made[source.input[0]]
            bias = arrays[source.input[0]]
            chain.append(users[chain[-1].output[0]][0])
        scaled = users[chain[-1].output[0]][0]
        product = made[next(i for i in scaled.input if i != chain[-1].output[0])]
        scale = next(arrays[i] for i in product.input if i != quantize.output[1])
        w = arrays[node.input[1]]
        zero = arrays[node.input[3]] if len(node.input) > 3 else np.zeros((), w.dtype)
        shape = [-1] + [1] * (w.ndim - 1) if node.op_type == "ConvInteger" else [1] * (w.ndim - 1) + [-1]
        spread = lambda v, shape=shape: v.reshape(shape if v.size > 1 else []).astype(np.float32)  # noqa: E731
        name = node.input[1] + "/float"
        arrays[name] = (w.astype(np.float32) - spread(zero)) * spread(scale)
        inputs = [quantize.input[0], name]
        if bias is not None:
            arrays[name + "/bias"] = bias.reshape(-1).astype(np.float32)
            inputs.append(name + "/bias")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        op = "Conv" if node.op_type == "ConvInteger" else "MatMul"
        replaced[scaled.output[0]] = (op, inputs, list(scaled.output), attributes)
        gone |= {id(n) for n in chain}
    steps: list[Step] = []
    for node in nodes:
        if node.output[0] in replaced:
            steps.append(replaced[node.output[0]])
        elif id(node) not in gone:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            steps.append((node.op_type, list(node.input), list(node.output), attributes))
    return steps


def _needed(steps: list[Step], outputs: list[str]) -> list[Step]:
    """Only those that the outputs hang on."""
    wanted = set(outputs)
    kept = []
    for step in reversed(steps):
        if wanted & set(step[2]):
            wanted |= set(step[1])
            kept.append(step)
    return kept[::-1]
