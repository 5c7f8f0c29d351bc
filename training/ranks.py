"""One training over several GPUs, a process each, as `torchrun` starts them: gradients, clock and centroids are one."""

import os

import torch
from torch import Tensor, nn
from torch import distributed as dist


class Ranks:
    """Where among the others a process stands; alone where there are none."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def join(self, device: torch.device) -> torch.device:
        """Meet the others; returns this process's own device."""
        if self.count == 1:
            return device
        cuda = device.type == "cuda"
        if cuda:
            device = torch.device("cuda", self.rank)
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo")
        return device

    def same(self, value: float, device: torch.device) -> float:
        """The first process's value."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return float(shared)

    def copy(self, tensors: list[Tensor]) -> None:
        """The first process's tensors in place of this one's."""
        if self.count > 1:
            flat = torch.cat([t.detach().flatten() for t in tensors])
            dist.broadcast(flat, 0)
            self._deal(flat, tensors)

    def mean_gradients(self, model: nn.Module) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if self.count > 1:
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            self._deal(flat / self.count, gradients)

    @staticmethod
    @torch.no_grad()
    def _deal(flat: Tensor, tensors: list[Tensor]) -> None:
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
