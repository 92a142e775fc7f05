"""What each process of the tests of data parallelism runs, under torchrun: FOLDER."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from test_training_loop import SETTINGS, SHAPE, Stop, Synthetic

from evalengine.training.decoder.model import Decoder
from evalengine.training.fitting.loop import fit, mean_loss
from evalengine.training.fitting.parallel import SINGLE, DataParallel, ProcessGroup, leave
from evalengine.training.fitting.state import Place

MODES = ("ddp", "fsdp")
STEPS, STOPPED = 6, 4
LEAN = replace(SETTINGS, micro_rows=2, z_loss=1e-3)


def whole_run(folder: Path, group: ProcessGroup = SINGLE, **place: Path) -> Decoder:
    """Six steps of five rows, so that the processes' shares differ; activations recomputed."""
    model = Decoder(SHAPE, checkpoint_activations=True).initialise(torch.Generator().manual_seed(2))
    fit(model, Synthetic(STEPS, rows=5), LEAN, Place(log=folder / "log", group=group, **place))
    before = mean_loss(model, Synthetic(1).batch(0), Place())  # leaves a sharded root gathered
    whole = group.unsharded(model)
    if group.rank == 0:
        assert mean_loss(whole, Synthetic(1).batch(0), Place()) == before
    return whole


def stopped_run(folder: Path, group: ProcessGroup = SINGLE) -> None:
    """The same, stopped after four steps with the state of the third on disk."""
    model = Decoder(SHAPE, checkpoint_activations=True).initialise(torch.Generator().manual_seed(2))

    def stop(step: object) -> None:
        if step.step == STOPPED:  # type: ignore[attr-defined]
            raise Stop

    place = Place(log=folder / "log", state=folder / "state.pt", save_every_s=0, group=group)
    try:
        fit(model, Synthetic(STEPS, rows=5), LEAN, place, stop)
    except Stop:
        return
    raise AssertionError("it did not stop")


def runs(mode: str, folder: Path) -> None:
    group = DataParallel("cpu", mode)
    model = Decoder(SHAPE)
    wrapped = group.wrap(model)
    kept = sum(getattr(w, "_local_tensor", w).numel() for w in wrapped.parameters())
    assert kept == SHAPE.params // (2 if mode == "fsdp" else 1)  # what this process holds
    model = whole_run(folder / "whole", group)
    if group.rank == 0:
        torch.save(model.state_dict(), folder / "whole/weights.pt")
    stopped_run(folder / "resumed", group)
    model = whole_run(folder / "resumed", group, state=folder / "resumed/state.pt")
    if group.rank == 0:
        torch.save(model.state_dict(), folder / "resumed/weights.pt")
    whole_run(folder / "from_single", group, state=folder / "from_single/state.pt")
    stopped_run(folder / "for_single", group)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for mode in MODES:
        runs(mode, folder / mode)
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
