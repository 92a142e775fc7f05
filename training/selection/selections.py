"""What a run's pretrained model chose of the conversations, kept in a file.

`OUT/.study/selected/{scale}-{mixture}.arrow` (sealed, like the score files) has a row for every conversation of the
study, in its order: conversation, score (NaN: none), tokens that carry loss within the context, response (CRC-32 of
those tokens), chosen. A resumed run reads its choice there, and so can an analysis.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalengine import console
from evalengine.arrow import array_of, numbers
from evalengine.store import sealed
from evalengine.training.data.conversations import Example, cut
from evalengine.training.data.tokenizer import Tokenizer
from evalengine.training.decoder.model import Decoder
from evalengine.training.fitting.state import Place
from evalengine.training.selection import frontier
from evalengine.training.study import Run, Select

FORMAT = 1  # moves when the same model would give other scores or another choice: GUESS is part of it
METADATA = b"selection"


class Selection(NamedTuple):
    """One run's scores and choice, a value for each conversation of the study (M)."""

    score_M: np.ndarray  # float64, NaN where there is none
    token_M: np.ndarray  # int32: tokens that carry loss within the context
    response_M: np.ndarray  # uint32: CRC-32 of those tokens
    chosen_M: np.ndarray  # bool
    bounds: tuple[float, float]  # lowest and highest score between the quantiles
    tokens: int  # that carry loss in the conversations between the quantiles

    def summary(self) -> dict[str, Any]:
        """What evalengine.json says of it."""
        return {
            "bounds": list(self.bounds),
            "between_tokens": self.tokens,
            "chosen_tokens": int(self.token_M[self.chosen_M].sum()),
            "unscored": int(np.isnan(self.score_M).sum()),
        }


def path_of(work: Path, run: Run) -> Path:
    return work / "selected" / f"{run.scale}-{run.mixture}.arrow"


def make(
    model: Decoder,
    examples: Sequence[Example],
    select: Select,
    tokenizer: Tokenizer,
    place: Place,
    *,
    context: int,
    seed: tuple[int, ...],
) -> Selection:
    """Scores the conversations under `model` and chooses some.

    context: of the model to be fine-tuned; what is cut off there neither counts nor is chosen. seed: of the random control.
    Raises UserError where nothing is chosen.
    """
    own = cut(examples, context)
    learned = [ids[learned] for ids, learned in own]
    token_M = np.array([len(ids) for ids in learned], np.int32)
    score_M = frontier.scores(model, own, select.score, tokenizer, place)
    score_M[token_M == 0] = np.nan
    chosen_M = frontier.between(score_M, select.keep)
    tokens = int(token_M[chosen_M].sum())
    bounds = float(score_M[chosen_M].min()), float(score_M[chosen_M].max())
    if select.control:
        chosen_M = frontier.random_control(token_M, ~np.isnan(score_M), tokens, seed)
    response_M = np.array([zlib.crc32(ids.tobytes()) for ids in learned], np.uint32)
    return Selection(score_M, token_M, response_M, chosen_M, bounds, tokens)


def write(path: Path, selection: Selection, key: str) -> None:
    """Whole or not at all. `key`: of everything that decides the selection."""
    import pyarrow as pa

    columns = {
        "conversation": np.arange(len(selection.score_M), dtype=np.int32),
        "score": selection.score_M,
        "tokens": selection.token_M,
        "response": selection.response_M,
        "chosen": selection.chosen_M,
    }
    table = pa.table({name: array_of(values) for name, values in columns.items()})
    about = {"format": FORMAT, "key": key, "bounds": selection.bounds, "tokens": selection.tokens}
    sealed.write(path, table, {METADATA.decode(): json.dumps(about)})


def read(path: Path, key: str | None = None) -> Selection | None:
    """What was written with `key` (None: any); None where there is no such file, or it is damaged."""
    try:
        table = sealed.read(path)
    except FileNotFoundError:
        return None
    except (sealed.Damaged, OSError):
        console.warn(f"{path} is damaged: the conversations are scored again")
        return None
    about = json.loads(table.schema.metadata[METADATA])
    if key is not None and about["key"] != key:
        return None
    score, token, response = (numbers(table.column(n).chunk(0)) for n in ("score", "tokens", "response"))
    chosen = table.column("chosen").to_numpy()
    low, high = about["bounds"]
    return Selection(score, token, response, chosen, (low, high), about["tokens"])
