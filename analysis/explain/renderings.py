"""What `score --formats` stored: every choice of an item in each of several answer formats, beside the ordinary scores.

Dims: K checkpoints, I items of one benchmark, C choices of all items in one format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evalengine.analysis.explain.choices import Choices, Scores, only, read_choices
from evalengine.errors import UserError


def read_formats(store: Path, metric: str | None = None) -> Scores | None:
    """The scores in formats, None where there are none. Items of which an answer begins another are left out, and named.

    Raises UserError as `read_choices` does, and where benchmarks were scored in different formats.
    """
    if not any(store.glob("*/*.arrow")):
        return None
    scores = read_choices(store, metric, formats=True)
    found, notes = [], [f"in formats: {note}" for note in scores.notes]
    for choices in scores.benchmarks:
        first = scores.benchmarks[0]
        if (choices.formats, choices.cue) != (first.formats, first.cue):
            raise UserError(
                f"{store}: {choices.name} and {first.name} were scored in different formats, or with different cues: score one of"
                " them again with --fresh"
            )
        if not choices.formats or (np.diff(choices.offset_I1) % len(choices.formats)).any():
            raise UserError(
                f"{store}: {choices.name} does not hold every choice in every format: score it again with --fresh"
            )
        keep_I = np.array([item not in choices.overlapping for item in choices.item_I])
        if not keep_I.all():
            notes.append(
                f"in formats: {choices.name}: {(~keep_I).sum()} of {len(keep_I)} items are left out, since one answer is the "
                "beginning of another"
            )
        if keep_I.any():
            found.append(only(choices, keep_I))
    return scores._replace(benchmarks=tuple(found), notes=tuple(notes))


def in_format(choices: Choices, f: int) -> Choices:
    """The choices as they are written in one of the formats."""
    count_I = np.diff(choices.offset_I1) // len(choices.formats)
    offset_I1 = np.concatenate([[0], np.cumsum(count_I)])
    at_C = np.repeat(choices.offset_I1[:-1] + f * count_I - offset_I1[:-1], count_I) + np.arange(
        offset_I1[-1]
    )
    return choices.taken(at_C, count_I)
