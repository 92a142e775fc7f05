"""Safetensors: their tensors for transformers' loader, or into the parameters of a module that already exists.

One module per architecture serves all its checkpoints: each tensor is read and copied into the parameter, so that memory holds
one tensor twice at most. Headers are checked before anything is touched, so a truncated file changes nothing. Files are read,
not mapped: a file that is written over while its model scores changes no score.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from evalengine.errors import UserError
from evalengine.untrusted import printable, reason

if TYPE_CHECKING:
    import torch

# Bytes of an element.
FLOAT8 = ("F8_E4M3", "F8_E5M2")
FLOATING = ("F64", "F32", "F16", "BF16")
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
WIDTHS |= dict.fromkeys(FLOAT8, 1)
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch.compile's, FSDP's


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a safetensors file, not read yet: `stored[...]` reads it, as transformers' loader asks for one."""

    file: Path
    name: str
    dtype: str  # one of WIDTHS
    shape: tuple[int, ...]
    opened: Any  # safetensors' handle of the file

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        """The tensor, in memory of its own. Raises UserError where the file was cut since it was opened."""
        from safetensors import SafetensorError

        try:
            tensor: torch.Tensor = self.opened.get_tensor(self.name)
        except SafetensorError:
            raise UserError(f"{self.file} changed while it was read: copy the checkpoint again") from None
        return tensor

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * WIDTHS[self.dtype]


def headers(files: list[Path]) -> dict[str, FileTensor]:
    """The tensors of safetensors files. Raises UserError where a file is truncated or is no such file."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, FileTensor] = {}
    for file in files:
        try:
            opened = safe_open(file, "pt", backend="pread")
        except SafetensorError:
            raise UserError(f"{file} is truncated or corrupt: copy the checkpoint again") from None
        for name in opened.offset_keys():
            header = opened.get_slice(name)
            dtype = header.get_dtype()
            if dtype not in WIDTHS:
                raise UserError(
                    f"{file}: {printable(name[:60])} is stored as {dtype}, which evalengine does not read: convert it to bf16"
                )
            tensor = FileTensor(file, name, dtype, tuple(header.get_shape()), opened)
            check_twice(found.setdefault(name, tensor), tensor, file)
    return found


def check_twice(first: Any, tensor: Any, file: Path) -> None:
    """Raises UserError where two files hold other values under one name, of which one would be taken without a word."""
    if first is tensor:
        return
    import torch

    one, other = first[...], tensor[...]
    if one.dtype != other.dtype or not torch.equal(one, other):
        raise UserError(
            f"{file} and another file of the same weights hold different values under one name: they are of two"
            " checkpoints; copy the checkpoint again"
        )


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
        for name, tensor in content.items():
            check_twice(tensors.setdefault(str(name), tensor), tensor, file)
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


def fits(module: torch.nn.Module, stored: dict[str, FileTensor]) -> bool:
    """Whether these tensors fill the module exactly: none missing, extra, misshapen, or unlike one that shares its memory."""
    import torch

    state = module.state_dict()
    filled: dict[int, FileTensor] = {}
    for name, tensor in stored.items():
        if name not in state or tuple(state[name].shape) != tensor.shape:
            return False
        if kind_of(tensor) != "floating" and state[name].is_floating_point():
            return False  # whole numbers or float8: whether something scales them is asked where it is loaded anew
        shared = filled.setdefault(state[name].data_ptr(), tensor)
        if tensor.size and shared is not tensor:
            alike = (shared.dtype, shared.shape) == (tensor.dtype, tensor.shape)
            if not alike or not torch.equal(shared[...], tensor[...]):
                return False
    return all(not tensor.numel() or tensor.data_ptr() in filled for tensor in state.values())


def check_unscaled(
    module: torch.nn.Module, tensors: Mapping[str, Any], extra: Collection[str], name: str
) -> str | None:
    """Refuses weights that something must scale, where the configuration says nothing of it: transformers takes the numbers as
    they stand.

    Whole numbers always are scaled. Numbers in float8 are where scales stand beside them, among the `extra` tensors, which the
    module does not have, and where they reach float8's largest number, as scaling makes them. Else a note that they are not.
    `name` is the checkpoint's. Raises UserError.
    """
    import torch

    state, float8 = module.state_dict(), False
    copy = "copy the config.json that they were saved with"
    scale = next((key for key in sorted(extra) if "scale" in key.rsplit(".", 1)[-1]), None)
    for key, tensor in tensors.items():
        # A weight by another name in the module may be one of those that are fused; what else has none is no weight.
        fused = key not in state and key not in extra and key.endswith("weight")
        if not fused and (key not in state or not state[key].is_floating_point()):
            continue
        kind, held = kind_of(tensor), f"{name} holds {printable(key[:80])}"
        if kind == "whole":
            raise UserError(
                f"{held} in whole numbers, and its config.json no quantization_config that says how they are scaled: {copy}"
            )
        if kind != "float8":
            continue
        if scale is not None:
            raise UserError(
                f"{held} in float8 with scales beside ({printable(scale[:80])}), and its config.json no quantization_config that"
                f" says how they are applied: {copy}"
            )
        values, float8 = tensor[...], True
        if values.numel() and float(values.float().abs().max()) == torch.finfo(values.dtype).max:
            raise UserError(
                f"{held} in float8 up to its largest number ({torch.finfo(values.dtype).max:g}), as scaled weights are, but"
                " neither scales nor a quantization_config: copy the checkpoint again, or save it in bf16"
            )
    return (
        "weights in float8 without scales are taken as they stand, as transformers does" if float8 else None
    )


def kind_of(tensor: Any) -> str:
    """Whether a tensor, read or not, holds "whole" numbers, "float8" or wider "floating" ones."""
    if isinstance(tensor, FileTensor):
        return "float8" if tensor.dtype in FLOAT8 else "floating" if tensor.dtype in FLOATING else "whole"
    if not tensor.is_floating_point():
        return "whole"
    return "float8" if tensor.element_size() == 1 else "floating"


def names_in(module: torch.nn.Module, stored: dict[str, FileTensor]) -> dict[str, str] | None:
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


def holds(into: torch.Tensor, tensor: FileTensor) -> bool:
    """Whether a tensor has the stored values, but for its dtype."""
    import torch

    return tuple(into.shape) == tensor.shape and torch.equal(into, tensor[...].to(into))


def fill(module: torch.nn.Module, stored: dict[str, FileTensor]) -> None:
    """Reads every tensor into the module's own memory. The caller has checked `fits`."""
    state = module.state_dict()
    for name, tensor in stored.items():
        state[name].copy_(tensor[...])


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
