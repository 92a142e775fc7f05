"""What the user sees: one display, rich on a terminal, plain lines elsewhere.

A leaf: it imports nothing of evalengine but `untrusted`, so the scorer, the trainer and the analysis share it. On a terminal
`progress` is a live rich display; when output is piped or in CI it prints one plain line per finished task and at most one
every `PLAIN_EVERY_S` seconds in between. `set_json(True)` silences everything but `emit_json` and warnings.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from evalengine.untrusted import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

PLAIN_EVERY_S = 10.0
PIPED = 140  # columns where there is no terminal and COLUMNS does not say
GAP = 2  # spaces between two columns of a table
_state = {"json": False}


def set_json(on: bool) -> None:
    """With `on`, only `emit_json` writes to standard output, and only warnings go to standard error."""
    _state["json"] = on


def is_terminal() -> bool:
    plain = os.environ.get("CI") or os.environ.get("TERM") == "dumb" or _state["json"]
    return sys.stderr.isatty() and not plain


def console(*, err: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else int(columns) if columns.isdecimal() and int(columns) else PIPED
    return Console(file=stream, width=width, soft_wrap=False, highlight=False)


def shown(text: object) -> str:
    """What may be sent to a terminal: names and texts from files may hold sequences that steer it."""
    return "\n".join(map(printable, str(text).split("\n")))


def say(text: str) -> None:
    """One line for the user (markup is not interpreted); none beside `--json`."""
    if _state["json"]:
        return
    console().print(shown(text), markup=False, soft_wrap=True)


def warn(text: str) -> None:
    console(err=True).print(f"warning: {shown(text)}", markup=False, soft_wrap=True, style="yellow")


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Without the lines of huggingface_hub on every attempt to connect: what comes of them all is an error, and one sentence."""
    if os.environ.get("HF_HUB_VERBOSITY") or os.environ.get("HF_DEBUG"):  # the user wants them
        yield
        return
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def emit_json(value: Any) -> None:
    """The one JSON object of `--json`."""
    sys.stdout.write(json.dumps(value, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    left: int = 1,
    caption: str | None = None,
    optional: Sequence[str] = (),
) -> None:
    """Prints a table; the first `left` columns are left-aligned text, the others right-aligned.

    optional: columns, by name, that are left out where the terminal is too narrow for all, the first of them first. What then
    does not fit is wrapped by the terminal: a number that is cut would be another one. Nothing is printed beside `--json`.
    """
    if _state["json"]:
        return
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    lines = [[shown("" if cell is None else cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    kept = list(range(len(columns)))
    for name in (name for name in optional if name in columns):
        if sum(widths[k] + GAP for k in kept) - GAP > console().width:
            kept.remove(list(columns).index(name))
    t = Table(
        caption=None if caption is None else Text(shown(caption), style="table.caption"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, GAP - 1, 0, 0),  # and the box puts a space between two columns
        show_edge=False,
    )
    # Text, because names may hold [markup]
    for k in kept:
        justify: Literal["left", "right"] = "left" if k < left else "right"
        t.add_column(Text(lines[0][k]), justify=justify, no_wrap=True)
    for line in lines[1:]:
        t.add_row(*(Text(line[k]) for k in kept))
    out = console()
    out.width = max(out.width, sum(widths[k] + GAP for k in kept))
    if title:
        out.print(Text(shown(title), style="table.title"))  # of the table, it would wrap at the table's width
    out.print(t, markup=False)


class Progress:
    """One line of progress: `update` moves it, `describe` renames it. Use through `progress(...)`."""

    def __init__(self, display: RichProgress, label: str, total: float, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.started, self._last = 0.0, time.monotonic(), time.monotonic()
        self._display = display
        self._task = display.add_task(shown(label), total=total, note="")

    def describe(self, label: str) -> None:
        self.label = label
        self.rows([])

    def rows(self, rows: Sequence[str]) -> None:
        """Lines under the bar, on a terminal: what each worker does."""
        self._display.update(self._task, description=shown("\n".join([self.label, *rows])))

    def update(self, advance: float, note: str = "") -> None:
        """Moves on by `advance` units; `note` (loss, rate) is shown behind the bar."""
        self.done += advance
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        note = shown(note or f"{rate:,.0f} {self.unit}/s")
        self._display.update(self._task, advance=advance, note=note)
        plain = self._display.disable and not _state["json"]
        if plain and time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            print(
                f"{shown(self.label)}: {self.done:,.0f} / {self.total:,.0f} {self.unit}  {note}", flush=True
            )


@contextlib.contextmanager
def progress(label: str, total: float, unit: str = "items") -> Iterator[Progress]:
    """A progress line for the length of a `with` block."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    with RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=console(err=True),
        disable=not is_terminal(),
    ) as display:
        yield Progress(display, label, total, unit)
