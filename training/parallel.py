"""Data parallelism on torch's own engine: `torchrun --nproc-per-node N -m evalengine train STUDY`.

Each process takes every N-th row of a step; gradients are averaged as they are computed. `SINGLE` is the
group of one process, so that the loop has one path.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch import Tensor, nn


class Group:
    """The processes that train one run together."""

    rank, size = 0, 1

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def synchronise(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a micro-batch: only the last one of a step exchanges gradients."""
        return contextlib.nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        return value

    def wait(self) -> None:
        """Until every process is here."""


class DataParallel(Group):
    def __init__(self, device: str) -> None:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device

    def wrap(self, model: nn.Module) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.startswith("cuda") else None
        )

    def synchronise(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else wrapped.no_sync()  # type: ignore[operator, no-any-return]

    def sum(self, value: Tensor) -> Tensor:
        import torch.distributed as dist

        dist.all_reduce(value)
        return value

    def wait(self) -> None:
        import torch.distributed as dist

        dist.barrier()

    def close(self) -> None:
        import torch.distributed as dist

        dist.destroy_process_group()


SINGLE = Group()


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_device() -> str:
    """The device of this process under torchrun."""
    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
