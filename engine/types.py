"""What a backend is, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from evalengine.checkpoints import Checkpoint
    from evalengine.encoding import Sequences


class Scores(NamedTuple):
    """Per sequence: summed log-likelihood of its targets in nats (float64), and whether each was the argmax."""

    loglik: np.ndarray
    greedy: np.ndarray


class Described(Protocol):
    """What a store's metadata says of a backend."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...


class Backend(Described, Protocol):
    """What runs a model. It sees token ids, never text."""

    notes: list[str]  # what the user should know about how the loaded model runs

    def load(self, checkpoint: Checkpoint) -> None:
        """Makes a checkpoint the one that is scored. Raises UserError."""

    def score(self, sequences: Sequences, progress: Callable[[float], None] | None = None) -> Scores:
        """Scores of the loaded checkpoint. `progress` is called with numbers of sequences finished. Raises UserError."""

    def close(self) -> None:
        """Ends what the backend has started."""
