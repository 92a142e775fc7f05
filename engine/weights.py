"""Safetensors -> the parameters of a module that already exists, without a second copy in memory.

One module per architecture serves all its checkpoints: each tensor's bytes are read from the file straight into the
parameter (or through one small buffer where the dtype differs). Headers are checked before anything is touched, so a
truncated file changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine.errors import UserError
from evalengine.untrusted import parse_json, printable

if TYPE_CHECKING:
    import torch

HEADER_LIMIT = 100_000_000  # bytes: the format's own limit
READ_AT_ONCE = 64 << 20  # bytes of a tensor converted at a time


class Stored(NamedTuple):
    """Where a tensor lies: `size` bytes at `offset` of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def headers(files: list[Path]) -> dict[str, Stored]:
    """The tensors of safetensors files. Raises UserError where a file is truncated or is no such file."""
    import math

    sizes = {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U8": 1,
        "BOOL": 1,
    }
    found: dict[str, Stored] = {}
    for file in files:
        bad = UserError(f"{file} is truncated or corrupt: copy the checkpoint again")
        length = file.stat().st_size
        with file.open("rb") as handle:
            head = handle.read(8)
            n = int.from_bytes(head, "little")
            if len(head) < 8 or n > min(HEADER_LIMIT, length - 8):
                raise bad
            raw = handle.read(n)
        try:
            entries = parse_json(raw)
            for name, entry in entries.items():
                if name == "__metadata__":
                    continue
                shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
                if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
                    raise bad
                width = sizes.get(entry["dtype"])
                if width is None:
                    raise UserError(
                        f"{file}: {printable(name[:60])} is stored as {printable(str(entry['dtype'])[:20])},"
                        " which evalengine does not read: convert it to bf16"
                    )
                size = math.prod(shape) * width
                if not begin <= end <= length - 8 - n or end - begin != size:
                    raise bad
                found[name] = Stored(file, entry["dtype"], shape, 8 + n + begin, size)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise bad from None
    return found


def plausible(config: dict[str, Any], tensors: int, name: str) -> None:
    """Refuses a configuration of more layers than the files hold tensors, before a module of that size is built."""
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        layers = config.get(key)
        if isinstance(layers, int) and layers > tensors:
            raise UserError(
                f"{name} does not hold the model its config.json describes ({layers} layers, {tensors} tensors): copy it again"
            )


def fits(module: torch.nn.Module, stored: dict[str, Stored]) -> str | None:
    """None if these tensors fill the module exactly, else what is wrong (a name that is missing, extra or misshapen)."""
    state = module.state_dict()
    for name, tensor in stored.items():
        if name not in state:
            return f"the file has {name}, the model has not"
        if tuple(state[name].shape) != tensor.shape:
            return f"{name} is {list(tensor.shape)} in the file, {list(state[name].shape)} in the model"
    covered = {state[name].data_ptr() for name in stored}
    for name, tensor in state.items():
        if tensor.data_ptr() not in covered and tensor.numel():
            return f"{name} is missing from the file"
    return None


def fill(module: torch.nn.Module, stored: dict[str, Stored]) -> None:
    """Reads every tensor into the module's own memory. The caller has checked `fits`."""
    import torch

    kinds = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
    }
    kinds |= {"I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
    state = module.state_dict()
    handles: dict[Path, int] = {}
    try:
        for name in sorted(stored, key=lambda n: (str(stored[n].file), stored[n].offset)):
            tensor, into = stored[name], state[name]
            if not tensor.size:
                continue
            if tensor.file not in handles:
                handles[tensor.file] = os.open(tensor.file, os.O_RDONLY)
            kind = kinds[tensor.dtype]
            flat = into.view(-1) if into.is_contiguous() else None
            direct = flat is not None and into.dtype == kind and into.device.type == "cpu"
            step = into.numel() if direct else max(1, READ_AT_ONCE // kind.itemsize)
            buffer = torch.empty(0 if direct else min(step, into.numel()), dtype=kind)
            staged = (
                flat if flat is not None else torch.empty(into.numel(), dtype=into.dtype, device=into.device)
            )
            for begin in range(0, staged.numel(), step):
                end = min(begin + step, staged.numel())
                target = staged[begin:end] if direct else buffer[: end - begin]
                read_exactly(handles[tensor.file], tensor.offset + begin * kind.itemsize, target, tensor.file)
                if not direct:
                    staged[begin:end].copy_(target)
            if flat is None:
                into.copy_(staged.view(into.shape))
    finally:
        for handle in handles.values():
            os.close(handle)


def read_exactly(handle: int, offset: int, into: torch.Tensor, file: Path) -> None:
    import torch

    view = memoryview(into.view(torch.uint8).numpy().data).cast("B")
    done = 0
    while done < len(view):
        got = os.preadv(handle, [view[done:]], offset + done)
        if got <= 0:
            raise UserError(f"{file} ended while it was read: copy the checkpoint again")
        done += got


def non_finite(module: torch.nn.Module) -> str | None:
    """Name of the first parameter that holds NaN or infinity, None if all are finite."""
    import torch

    for name, tensor in module.named_parameters():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                return name
    return None
