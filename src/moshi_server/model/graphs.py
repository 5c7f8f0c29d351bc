"""A batched step in fixed sizes, captured in a CUDA graph for each; it knows rows of numbers, and no model.

A step is a function of rows (N, width in) to rows (N, width out), f32, which keeps its state in tensors of its own. It
is captured for a few N, the buckets. A step of fewer rows fills its bucket up with copies of a padding row, which names
a slot that no stream has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]
Pool = Any  # torch keeps the name of this type to itself

_DOUBLING_UP_TO = 32


def bucket_sizes(rows: int) -> list[int]:
    """1, 2, 4, ..., from 32 on in steps of half and a third (32, 48, 64, 96, ...), and ``rows`` itself."""
    sizes = []
    size = 1
    while size < rows:
        sizes.append(size)
        if size >= _DOUBLING_UP_TO and size + size // 2 < rows:
            sizes.append(size + size // 2)
        size *= 2
    return [*sizes, rows]


def graph_pool(device: torch.device) -> Pool | None:
    """Memory that the graphs of several steps may share; None where there are no graphs."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


class BucketedStep:
    """Runs a step on rows that the caller writes into ``inputs``, in one copy each way through pinned memory.

    Args:
        step: (N, width) -> (N, outputs), f32 on ``device``; it must do the same operations at every call.
        rows: the most rows of a step.
        padding: the row (width,) that fills a bucket up.
        graphs: capture each bucket; without, the same step is called as it is, on any device.
        pool: the memory that graphs work in, of `graph_pool`; steps that never run at once may share one.
    """

    def __init__(
        self,
        step: Step,
        rows: int,
        padding: Tensor,
        device: torch.device,
        *,
        graphs: bool = True,
        pool: Pool | None = None,
    ) -> None:
        pin = device.type == "cuda"
        self._step = step
        self._padding = padding
        self._device = device
        self._sizes = bucket_sizes(rows)
        self._inputs = padding.repeat(rows, 1)
        self._inputs = self._inputs.pin_memory() if pin else self._inputs
        self.inputs = self._inputs.numpy()
        """(rows, width) f32: what the next `run` takes its first rows from."""
        self._on_device = self._inputs.to(device)
        self._written = 0  # rows from here on are padding
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._outputs: Tensor | None = None
        self._result: Tensor | None = None
        self._done: torch.cuda.Event | None = None
        if pin:
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        if graphs and pin:
            self._capture(pool or torch.cuda.graph_pool_handle())

    @property
    def sizes(self) -> Sequence[int]:
        """The buckets, smallest first."""
        return self._sizes

    def run(self, count: int) -> Tensor:
        """The outputs (count, outputs), on the host, of the first ``count`` rows; good until the next call."""
        self.launch(count)
        return self.result()

    def launch(self, count: int) -> None:
        """Begin a step of the first ``count`` rows. They may be written again once `result` has returned."""
        size = next(size for size in self._sizes if size >= count)
        self._inputs[count : min(size, self._written)] = self._padding
        if self._written <= size:
            self._written = count
        with torch.inference_mode(), self._chosen():
            self._on_device[:size].copy_(self._inputs[:size], non_blocking=True)
            made = self._replay(size)[:count]
            self._result = made
            if self._done is None:
                return
            if self._outputs is None:
                self._outputs = torch.empty(len(self._inputs), made.shape[1], pin_memory=True)
            self._result = self._outputs[:count]
            self._result.copy_(made, non_blocking=True)
            self._done.record()

    def result(self) -> Tensor:
        """The outputs (count, outputs), on the host, of what was launched; good until the next step.

        While the device works, other threads run: this one waits without the interpreter.
        """
        assert self._result is not None, "nothing was launched"
        result, self._result = self._result, None
        if self._done is not None:
            self._done.synchronize()
        return result

    def _chosen(self) -> AbstractContextManager[None]:
        """Streams, events and kernels are those of the device that is current."""
        return nullcontext() if self._done is None else torch.cuda.device(self._device)

    def _replay(self, size: int) -> Tensor:
        if size not in self._graphs:
            return self._step(self._on_device[:size])
        graph, made = self._graphs[size]
        graph.replay()
        return made

    def _capture(self, pool: Pool) -> None:
        # The largest first: the others then fit into the memory that it has made the pool take.
        side: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.device(self._device):
            for size in reversed(self._sizes):
                rows = self._on_device[:size]
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    self._step(rows)  # compiles kernels and chooses algorithms, which cannot be captured
                torch.cuda.current_stream().wait_stream(side)
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=side):
                    made = self._step(rows)
                self._graphs[size] = (graph, made)
