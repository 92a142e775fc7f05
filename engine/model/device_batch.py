"""A packed batch on the device that the model runs on.

Dims: N tokens, R scored rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalengine.kernels import Tree
from evalengine.plan import packing


class DeviceBatch(NamedTuple):
    batch: packing.Batch
    token_1N: Tensor
    position_1N: Tensor
    row_R: Tensor
    tree: Tree


def moved(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device; a GPU copies it while it still computes the batch before."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def on_device(batch: packing.Batch, device: torch.device) -> DeviceBatch:
    """A batch's tensors, in one transfer."""
    arrays = (batch.token_N, batch.position_N, batch.row_R, batch.ancestor_A, batch.offset_B, batch.end_N)
    parts = moved(np.concatenate(arrays), device).split([len(array) for array in arrays])
    token_N, position_N, row_R = (indices.long() for indices in parts[:3])  # what models expect
    ancestor_A, offset_B, end_N = parts[3:]
    tree = Tree(ancestor_A, offset_B, end_N, position_N, batch.block)
    return DeviceBatch(batch, token_N[None], position_N[None], row_R, tree)
