"""Where a run computes, its log of steps, and its mid-run state: model, optimiser, step, losses, in one file, whole or absent.

torch.save writes a zip archive whose records carry CRC-32 sums, which torch.load does not look at; they are
checked here before a state is used. A damaged state is set aside as `<name>.damaged` and the run starts
again. A state holds whole tensors, so one process, data-parallel ones and sharded ones read each other's.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evalengine import console
from evalengine.errors import UserError
from evalengine.files import atomic
from evalengine.store import sealed
from evalengine.training.data.rows import MEASURES
from evalengine.training.fitting.parallel import SINGLE, ProcessGroup

if TYPE_CHECKING:
    from evalengine.training.decoder.model import Decoder

KEYS = {"model", "optimiser", "step", "losses", "fingerprint"}


@dataclass(frozen=True)
class Place:
    """Where a run computes and keeps its state."""

    device: str = "cpu"
    autocast: bool = False  # bfloat16 products, float32 weights
    compile: bool = False
    width: int = 0  # rows are filled up to this many positions; 0: as they come
    state: Path | None = None  # mid-run checkpoint
    log: Path | None = None  # one JSON line a step
    tensorboard: Path | None = None  # folder of a TensorBoard log
    fingerprint: str = ""  # of everything that decides the result; another one's state is refused
    save_every_s: float = 120.0
    group: ProcessGroup = SINGLE


def save(place: Place, model: Decoder, optim: torch.optim.Optimizer, step: int, losses: list[float]) -> None:
    """Writes the state; every process of the group calls it, the first one writes."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    # whole tensors, on the CPU of the first process; all take part
    path, options = place.state, StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(model, optim, options=options)
    state = {
        "model": weights,
        "optimiser": moments,
        "step": step,
        "losses": losses,
        "fingerprint": place.fingerprint,
    }
    if place.group.rank or path is None:
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


def restore(place: Place, model: Decoder, optim: torch.optim.Optimizer) -> tuple[int, list[float]]:
    """Loads the state if there is one: (the step to go on with, the losses so far)."""
    group, path = place.group, place.state
    if path is None:
        return 0, []
    if group.rank == 0 and path.is_file() and (reason := damage(path)):
        aside = sealed.set_aside(path)
        console.warn(
            f"the saved state {path} is damaged ({reason}): set aside as {aside.name}, the run begins again"
        )
    group.wait()
    if not path.is_file():
        return 0, []
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=group.size > 1)
    if state["fingerprint"] != place.fingerprint:
        raise UserError(
            f"the saved state {path} belongs to other settings, data or another tokenizer: "
            "delete it, use --fresh, or name another --out"
        )
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    weights, moments = state["model"], state["optimiser"]
    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optim, model_state_dict=weights, optim_state_dict=moments, options=options)
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


@contextlib.contextmanager
def step_log(place: Place, first: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What each step did, appended as a JSON line, and as TensorBoard scalars where the user asked for them.

    first: the step that the run goes on with; what a killed run logged beyond it is cut off.
    """
    if place.log is None or place.group.rank:
        yield lambda entry: None
        return
    place.log.parent.mkdir(parents=True, exist_ok=True)
    kept = place.log.read_text().splitlines(keepends=True)[:first] if first and place.log.is_file() else []
    place.log.write_text("".join(kept))
    with contextlib.ExitStack() as open_files:
        stream = open_files.enter_context(place.log.open("a"))
        scalars = None
        if place.tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            purge = first + 1 if first else None
            scalars = open_files.enter_context(SummaryWriter(str(place.tensorboard), purge_step=purge))

        def write(entry: dict[str, Any]) -> None:
            print(json.dumps(entry), file=stream, flush=True)
            if scalars is not None:
                for name in ("loss", "lr", "grad_norm", *MEASURES):
                    if name in entry:
                        scalars.add_scalar(name, entry[name], entry["step"])

        yield write
