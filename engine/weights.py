"""Safetensors: their tensors for transformers' loader, or into the parameters of a module that already exists.

One module per architecture serves all its checkpoints: each tensor's bytes are read from the file straight into the
parameter (or through one small buffer where the dtype differs), without a second copy in memory. Headers are checked before
anything is touched, so a truncated file changes nothing. Files are read, not mapped: a file that is written over while its
model scores changes no score.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine.errors import UserError
from evalengine.untrusted import parse_json, printable, reason

if TYPE_CHECKING:
    import torch

HEADER_LIMIT = 100_000_000  # bytes: the format's own limit
READ_AT_ONCE = 64 << 20  # bytes of a tensor converted or compared at a time
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch.compile's, FSDP's


class Stored(NamedTuple):
    """Where a tensor lies: `size` bytes at `offset` of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def kind(self) -> torch.dtype:
        import torch

        kinds = {
            "F64": torch.float64,
            "F32": torch.float32,
            "F16": torch.float16,
            "BF16": torch.bfloat16,
            "I64": torch.int64,
            "I32": torch.int32,
            "I16": torch.int16,
            "I8": torch.int8,
            "U8": torch.uint8,
            "BOOL": torch.bool,
        }
        return kinds[self.dtype]


class Unread:
    """A stored tensor as transformers' loader takes one of safetensors: `tensor[...]` reads it."""

    def __init__(self, tensor: Stored) -> None:
        self.tensor = tensor

    def __getitem__(self, index: Any) -> torch.Tensor:
        assert index is ...
        return read(self.tensor)


def headers(files: list[Path]) -> dict[str, Stored]:
    """The tensors of safetensors files. Raises UserError where a file is truncated or is no such file."""
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


def unpickled(files: list[Path]) -> dict[str, torch.Tensor]:
    """The tensors of PyTorch's own files. Raises UserError where they hold anything else."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{file} cannot be unpickled: {reason(error)}") from None
        if not isinstance(content, dict) or not all(torch.is_tensor(t) for t in content.values()):
            raise UserError(f"{file} holds more than weights: save them again, alone and as safetensors")
        tensors |= {str(name): tensor for name, tensor in content.items()}
    return tensors


def plausible(config: dict[str, Any], tensors: int, name: str) -> None:
    """Refuses a configuration of more layers than the files hold tensors, before a module of that size is built."""
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        layers = config.get(key)
        if isinstance(layers, int) and layers > tensors:
            raise UserError(
                f"{name} does not hold the model its config.json describes ({layers} layers, {tensors} tensors): copy it again"
            )


def unwrapped(tensors: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tensors under the names that the model itself gives them, where training saved it inside a wrapper.

    Raises UserError where two get one name. `name` is the checkpoint's.
    """
    inside = all(key.startswith("module.") for key in tensors)  # DataParallel's
    found: dict[str, Any] = {}
    for key, tensor in tensors.items():
        parts = [part for part in key.split(".") if part not in WRAPPERS]
        own = ".".join(parts[1:] if inside else parts)
        if own in found:
            raise UserError(f"{name} holds {printable(own[:80])} twice, once in a wrapper: save it again")
        found[own] = tensor
    return found


def fits(module: torch.nn.Module, stored: dict[str, Stored]) -> bool:
    """Whether these tensors fill the module exactly: none missing, extra, misshapen, or unlike one that shares its memory."""
    state = module.state_dict()
    filled: dict[int, Stored] = {}
    for name, tensor in stored.items():
        if name not in state or tuple(state[name].shape) != tensor.shape:
            return False
        shared = filled.setdefault(state[name].data_ptr(), tensor)
        if tensor.size and shared is not tensor and not equal(shared, tensor):
            return False
    return all(not tensor.numel() or tensor.data_ptr() in filled for tensor in state.values())


def names_in(module: torch.nn.Module, stored: dict[str, Stored]) -> dict[str, str] | None:
    """The module's name for every stored tensor, as its values show; None where some loader changed more than names."""
    state = module.state_dict()
    names = {name: name for name in stored if name in state}
    for name in stored.keys() - names.keys():
        # One of a kind: two tensors of equal values could change places in the next checkpoint.
        found = [own for own in state.keys() - names.keys() if holds(state[own], stored[name])]
        if len(found) != 1:
            return None
        names[name] = found[0]
    same = len(set(names.values())) == len(names)
    return names if same and all(holds(state[own], stored[name]) for name, own in names.items()) else None


def holds(into: torch.Tensor, tensor: Stored) -> bool:
    """Whether a tensor has the stored values, but for its dtype."""
    import torch

    if tuple(into.shape) != tensor.shape:
        return False
    flat = into.reshape(-1)
    return all(
        torch.equal(flat[begin : begin + len(piece)], piece.to(flat)) for begin, piece in pieces(tensor)
    )


def equal(a: Stored, b: Stored) -> bool:
    import torch

    same = (a.dtype, a.shape) == (b.dtype, b.shape)
    return same and all(torch.equal(x, y) for (_, x), (_, y) in zip(pieces(a), pieces(b), strict=True))


def fill(module: torch.nn.Module, stored: dict[str, Stored]) -> None:
    """Reads every tensor into the module's own memory. The caller has checked `fits`."""
    import torch

    state = module.state_dict()
    for name in sorted(stored, key=lambda n: (str(stored[n].file), stored[n].offset)):
        tensor, into = stored[name], state[name]
        if not tensor.size:
            continue
        flat = into.view(-1) if into.is_contiguous() else None
        if flat is not None and into.dtype == tensor.kind and into.device.type == "cpu":
            with tensor.file.open("rb", buffering=0) as file:
                read_exactly(file.fileno(), tensor.offset, flat, tensor.file)
            continue
        staged = torch.empty(into.numel(), dtype=into.dtype, device=into.device) if flat is None else flat
        for begin, piece in pieces(tensor):
            staged[begin : begin + len(piece)].copy_(piece)
        if flat is None:
            into.copy_(staged.view(into.shape))


def read(tensor: Stored) -> torch.Tensor:
    """A stored tensor, in memory of its own."""
    import torch

    whole = torch.empty(tensor.shape, dtype=tensor.kind)
    if not tensor.size:
        return whole
    with tensor.file.open("rb", buffering=0) as file:
        read_exactly(file.fileno(), tensor.offset, whole.view(-1), tensor.file)
    return whole


def pieces(tensor: Stored) -> Iterator[tuple[int, torch.Tensor]]:
    """A stored tensor, flat, piece by piece with where each begins; the next piece takes the memory of the last."""
    import torch

    numel, step = math.prod(tensor.shape), READ_AT_ONCE // tensor.kind.itemsize
    buffer = torch.empty(min(step, numel), dtype=tensor.kind)
    with tensor.file.open("rb", buffering=0) as file:
        for begin in range(0, numel, step):
            piece = buffer[: min(step, numel - begin)]
            read_exactly(file.fileno(), tensor.offset + begin * tensor.kind.itemsize, piece, tensor.file)
            yield begin, piece


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
            values = tensor.detach()
            low, high = torch.aminmax(values if values.element_size() > 1 else values.float())  # float8
            if not (torch.isfinite(low) and torch.isfinite(high)):
                return name
    return None
