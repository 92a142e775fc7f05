"""What a run's steps did, as JSON lines and as TensorBoard scalars."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from evalengine.training.rows import MEASURES
from evalengine.training.state import Place


@contextlib.contextmanager
def step_log(place: Place, first: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Appends JSON lines, and TensorBoard scalars where the user asked for them.

    What a killed run logged beyond its saved state is cut off first.
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
