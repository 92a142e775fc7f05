"""The mid-run state of a training run: model, optimiser, step, losses, in one file that is whole or absent.

torch.save writes a zip archive whose records carry CRC-32 sums, which torch.load does not look at; they are
checked here before a state is used. A damaged state is set aside as `<name>.damaged` and the run starts
again. A state holds whole tensors, so one process, data-parallel ones and sharded ones read each other's.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evalengine import console
from evalengine.errors import UserError
from evalengine.files import atomic

if TYPE_CHECKING:
    from evalengine.training.model import Decoder
    from evalengine.training.parallel import Group

KEYS = {"model", "optim", "step", "losses", "fingerprint"}


def save(
    path: Path,
    model: Decoder,
    optim: torch.optim.Optimizer,
    step: int,
    losses: list[float],
    fingerprint: str,
    group: Group,
) -> None:
    """Writes the state; every process of `group` calls it, the first one writes."""
    state = {
        "model": group.whole(model.state_dict()),
        "optim": group.whole(optim.state_dict()),
        "step": step,
        "losses": losses,
        "fingerprint": fingerprint,
    }
    if group.rank:
        return
    try:
        with atomic(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or "the disk is full or not writable"
        raise UserError(
            f"cannot write the run's state {path} ({reason}): make room on the disk and run the same command "
            "again"
        ) from None


def restore(
    path: Path, model: Decoder, optim: torch.optim.Optimizer, fingerprint: str, group: Group
) -> tuple[int, list[float]]:
    """Loads the state if there is one: (the step to go on with, the losses so far)."""
    if group.rank == 0 and path.is_file() and (reason := damage(path)):
        os.replace(path, path.with_name(f"{path.name}.damaged"))
        console.warn(
            f"the saved state {path} is damaged ({reason}): set aside as {path.name}.damaged, "
            "the run begins again"
        )
    group.wait()
    if not path.is_file():
        return 0, []
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=group.size > 1)
    if state["fingerprint"] != fingerprint:
        raise UserError(
            f"the saved state {path} belongs to other settings, data or another tokenizer: "
            "delete it, use --fresh, or name another --out"
        )
    group.fill(model, optim, state)
    return int(state["step"]), list(state["losses"])


def damage(path: Path) -> str | None:
    """What is wrong with a state file; None where its sums are right and it holds what it should."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            return f"the sum of {bad} is wrong"
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        missing = KEYS - set(found)
        return f"it lacks {', '.join(sorted(missing))}" if missing else None
    except Exception as error:  # zip, pickle and torch each raise their own
        return type(error).__name__
