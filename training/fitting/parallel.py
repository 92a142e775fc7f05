"""Several processes for one run, on torch's own engine: `torchrun --nproc-per-node N -m evalengine train STUDY`.

Each process takes every N-th row of a step, and gradients are averaged. A model below `SHARD_FROM` parameters
is copied to every process (DDP); a larger one is sharded (FSDP2): each process keeps 1/N of the weights,
gradients and AdamW's moments (16 bytes a parameter) and gathers a block's weights while it computes. What is
gathered is float32, so that both ways follow the same curve. `SINGLE` is the group of one process, so that
the loop has one path.
"""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from evalengine.training.decoder.model import Decoder

SHARD_FROM = 500_000_000  # parameters: 8 GB of weights, gradients and moments
LIMIT = timedelta(days=1)  # of one exchange: the first process alone prepares a corpus while the others wait


class ProcessGroup:
    """The processes that train one run together."""

    rank, size = 0, 1

    def wrap(self, model: Decoder) -> nn.Module:
        return model

    def synchronise(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a micro-batch: copies exchange gradients on the last one of a step only."""
        return contextlib.nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        return value

    def agree(self, choice: bool) -> bool:
        """The first process's choice, on every process."""
        return choice

    def unsharded(self, model: Decoder) -> Decoder:
        """The model with whole weights, on the first process."""
        return model

    def wait(self) -> None:
        """Blocks until every process has called it."""


class DataParallel(ProcessGroup):
    """The processes that torchrun started. `mode`: copies (ddp), shards (fsdp), or by size (auto)."""

    def __init__(self, device: str, mode: str = "auto") -> None:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=LIMIT)
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.mode = mode

    def wrap(self, model: Decoder) -> nn.Module:
        self.sharded = self.mode == "fsdp" or (self.mode == "auto" and model.shape.params >= SHARD_FROM)
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.split(":")[0], (self.size,))
            for block in model.layers():
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)  # what is left: embedding, last norm, head
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.startswith("cuda") else None
        )

    def synchronise(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        if last or self.sharded:  # shards reduce every time: whole gradients are what they avoid
            return contextlib.nullcontext()
        return wrapped.no_sync()  # type: ignore[operator, no-any-return]

    def sum(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    def agree(self, choice: bool) -> bool:
        flag = torch.tensor(int(choice), device=self.device)
        dist.broadcast(flag, 0)
        return bool(flag)

    def unsharded(self, model: Decoder) -> Decoder:
        if not self.sharded:
            return model
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(model, options=options)  # and the root's weights are shards again
        if self.rank:
            return model
        whole = type(model)(model.shape)
        whole.load_state_dict(weights)
        return whole

    def wait(self) -> None:
        dist.barrier()


def full(value: Tensor) -> Tensor:
    """A value that a sharded model computed in shards, whole on every process; any other as it is."""
    gather = getattr(value, "full_tensor", None)
    return gather() if gather else value


SINGLE = ProcessGroup()


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leave(code: int) -> NoReturn:
    """Ends a process that torchrun started, after a success together with the others.

    It ends as multiprocessing's own processes do, without the interpreter's shutdown: torch's caches of sharded tensors keep the
    group's threads alive until then, and a thread that frees its last tensor during the shutdown aborts the process.
    """
    if code == 0 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def local_device() -> str:
    """The GPU of this process under torchrun."""
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
