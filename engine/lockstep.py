"""Several models over the same batches: their own scores, and those of emulated fine-tuning, from one visit.

Every model is a TorchBackend, proven and checked as when it is scored alone; what runs is a way that all of them have. Rows of
the batches go through each model in turn, then through its own head, and through three heads at once for each shift.

Reference: Mitchell et al. (2024), "An emulator for fine-tuning large language models using small language models".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalengine.checkpoints import Checkpoint
from evalengine.encoding import Scores, Sequences
from evalengine.errors import ModelError, UserError
from evalengine.forward import OnProgress, Rows, Scored, head_rows, out_of_memory, scored
from evalengine.kernels.emulated_logprobs import emulated_logprobs
from evalengine.kernels.head import Head
from evalengine.torch_backend import Part, TorchBackend, summed
from evalengine.untrusted import reason

WAYS = ("packed", "padded", "alone")


class Shift(NamedTuple):
    """logits = z_base + beta (z_tuned - z_ref) for each beta; the models by their place among those loaded."""

    base: int
    tuned: int
    ref: int
    betas: tuple[float, ...]


class Wanted(NamedTuple):
    """What one visit gives: the own scores of some models, then those of every shift, beta by beta."""

    own: tuple[int, ...]
    shifts: tuple[Shift, ...]


class Lockstep:
    """Loads several checkpoints at a time; the next ones' weights are swapped into the same modules."""

    name = "torch"

    def __init__(self, backends: Sequence[TorchBackend]) -> None:
        self.backends = list(backends)
        self.loaded: list[TorchBackend] = []  # those that hold a model now
        self.vocabulary = 0  # ids of the tokenizer
        self._parts: list[Part] = []  # of the sequences that `_key` begins with
        self._key: tuple[Any, ...] | None = None
        self._running: TorchBackend | None = None  # whose forward runs

    @property
    def dtype(self) -> str:
        return self.backends[0].dtype

    @property
    def notes(self) -> list[str]:
        """Of all models, each once."""
        return list(dict.fromkeys(chain.from_iterable(backend.notes for backend in self.loaded)))

    def load(self, checkpoints: Sequence[Checkpoint], vocabulary: int) -> None:
        """Loads checkpoints that share a tokenizer of so many ids. Raises UserError."""
        self.loaded = self.backends[: len(checkpoints)]
        self.vocabulary, self._key = vocabulary, None
        for backend, checkpoint in zip(self.loaded, checkpoints, strict=True):
            backend.load(checkpoint)
            rows = len(head_of(backend).w_VD)
            if rows < vocabulary:
                raise UserError(
                    f"{checkpoint.name} has {rows} logits, its tokenizer {vocabulary} ids: they do not belong together; copy the"
                    " tokenizer that the model was trained with"
                )

    def score(self, wanted: Wanted, sequences: Sequences, progress: OnProgress | None = None) -> list[Scores]:
        """The scores that are wanted, in that order. Memory that runs out halves the batches of all models; a model whose
        fastest way raises goes on in its next one. Raises UserError."""
        while True:
            self._running = None
            try:
                return self._score(wanted, sequences, progress)
            except UserError:
                raise
            except Exception as error:
                if out_of_memory(error):
                    smallest = min(backend.batch_tokens for backend in self.loaded)
                    for backend in self.loaded:
                        backend.batch_tokens = smallest
                        backend.halve(sequences)
                elif self._running is not None and len(self._running.modes) > 1:
                    self._running.fail(reason(error))
                else:
                    raise ModelError(f"emulation stopped: {type(error).__name__}: {reason(error)}") from None

    def _score(self, wanted: Wanted, sequences: Sequences, progress: OnProgress | None) -> list[Scores]:
        models = [*wanted.own, *chain.from_iterable(shift[:3] for shift in wanted.shifts)]
        used = [i for i in range(len(self.loaded)) if i in models]
        place = {i: k for k, i in enumerate(used)}
        forwards = [self.loaded[i].forward for i in used]
        for i in used:
            self.loaded[i].check_ids(sequences)
            head_of(self.loaded[i])

        def score(states: tuple[Tensor, ...], row_T: Tensor, token_T: Tensor) -> list[Scored]:
            self._running = None
            found = [forwards[place[i]].score(states[place[i]], row_T, token_T) for i in wanted.own]
            for shift in wanted.shifts:
                base, tuned, ref = (forwards[place[i]].headed(states[place[i]]) for i in shift[:3])
                out = emulated_logprobs(
                    base, tuned, ref, shift.betas, row_T, token_T, vocab_size=self.vocabulary
                )
                found += zip(out.logprob_BT, out.greedy_BT, strict=True)
            return found

        count = len(wanted.own) + sum(len(shift.betas) for shift in wanted.shifts)
        loglik_KS = np.zeros((count, len(sequences)))
        greedy_KS = np.ones((count, len(sequences)), dtype=bool)
        with torch.inference_mode():
            for part in self._ways(sequences, used):
                most = head_rows(self.loaded[0].device)
                for k, targets in enumerate(scored(self._rows(part, used, progress), score, most)):
                    mine = summed(targets, len(part.sequences))
                    loglik_KS[k, part.number_S], greedy_KS[k, part.number_S] = mine
        return [Scores(loglik_S, greedy_S) for loglik_S, greedy_S in zip(loglik_KS, greedy_KS, strict=True)]

    def _rows(self, part: Part, used: Sequence[int], progress: OnProgress | None) -> Iterator[Rows]:
        """The rows of each batch of all models, whose tokens and targets are the same."""
        streams = [self._stream(self.loaded[i], part, progress if i == used[-1] else None) for i in used]
        for together in zip(*streams, strict=True):
            yield together[0]._replace(states=tuple(rows.states[0] for rows in together))

    def _stream(self, backend: TorchBackend, part: Part, progress: OnProgress | None) -> Iterator[Rows]:
        """One model's rows; notes that it is the one that runs."""
        self._running = backend
        backend.settle()
        rows = backend.rows(part, progress)
        while (found := next(rows, None)) is not None:
            yield found
            self._running = backend

    def _ways(self, sequences: Sequences, used: Sequence[int]) -> list[Part]:
        """The sequences by the fastest way that all models have for their length."""
        backends, length_S = [self.loaded[i] for i in used], np.diff(sequences.offset) - 1
        for backend in backends:
            backend.reach(int(length_S.max(initial=0)))
        longest = tuple(min(reach_of(backend, way) for backend in backends) for way in WAYS)
        packer = min(backends, key=lambda backend: min(backend.batch_tokens, backend.proof.tokens))
        key = (sequences.token_S, longest, packer.batch_tokens, packer.proof.tokens)
        if self._key is not None and self._key[0] is key[0] and self._key[1:] == key[1:]:
            return self._parts
        found, left_S = [], np.ones(len(sequences), dtype=bool)
        for way, most in zip(WAYS, longest, strict=True):
            index = np.flatnonzero(left_S & (length_S <= most))
            if len(index):
                mine = sequences if len(index) == len(sequences) else sequences.take(index)
                found.append(packer.part(way, mine, index))
                left_S[index] = False
        self._key, self._parts = key, found
        return found


def head_of(backend: TorchBackend) -> Head:
    """A model's head. Raises UserError where it makes its logits otherwise, which no shift can be added to."""
    head: Head | None = backend.forward.head
    if head is None:
        raise UserError(
            f"{backend.checkpoint} makes its logits in an output layer of its own, so they cannot be shifted: leave it out"
        )
    return head


def reach_of(backend: TorchBackend, way: str) -> int:
    """Up to how many tokens a model is exact in a way, 0 where it does not run so."""
    return max(
        (mode.longest for mode in backend.modes if mode.way == way and mode.head is not None), default=0
    )
