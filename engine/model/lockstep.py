"""Several models over the same batches: their own scores, and those of emulated fine-tuning, from one visit.

Every model is a TorchBackend, proven and checked as when it is scored alone; what runs is a way that all models of the shifts
have. Rows of the batches go through each model in turn, then through its own head, and through three heads at once for each
shift. A model that would run in another way alone is scored alone for its own scores, which are those of TorchBackend.score.

Reference: Mitchell et al. (2024), "An emulator for fine-tuning large language models using small language models".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalengine.checkpoints import Checkpoint
from evalengine.errors import ModelError, UserError
from evalengine.groups import Shift, Wanted
from evalengine.kernels.emulated_logprobs import emulated_logprobs
from evalengine.kernels.head import Head
from evalengine.model.forward import Rows, Scored, head_rows, out_of_memory, scored
from evalengine.model.torch_backend import Part, TorchBackend, summed
from evalengine.plan.encoding import OnProgress, Scores, Sequences
from evalengine.untrusted import reason

WAYS = ("packed", "padded", "alone")


class Lockstep:
    """Loads several checkpoints at a time; the next ones' weights are swapped into the same modules."""

    name = "torch"

    def __init__(self, backends: Sequence[TorchBackend]) -> None:
        self.backends = list(backends)
        for backend in self.backends[1:]:
            backend.learn_with(self.backends[0])
        self.loaded: list[TorchBackend] = []  # those that hold a model now
        self.vocabulary = 0  # ids of the tokenizer
        self._running: TorchBackend | None = None  # whose forward runs

    @property
    def dtype(self) -> str:
        return self.backends[0].dtype

    @property
    def notes(self) -> list[str]:
        """Of all models, each once."""
        return list(dict.fromkeys(chain.from_iterable(backend.notes for backend in self.loaded)))

    def close(self) -> None:
        """Nothing outlives the process."""

    def load(self, checkpoints: Sequence[Checkpoint], vocabulary: int) -> None:
        """Loads checkpoints that share a tokenizer of so many ids. Raises UserError."""
        self.loaded = self.backends[: len(checkpoints)]
        self.vocabulary = vocabulary
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
        shifted = sorted(set(chain.from_iterable(shift[:3] for shift in wanted.shifts)))
        for i in {*wanted.own, *shifted}:
            self.loaded[i].check_ids(sequences)
            self.loaded[i].prove_up_to(int((np.diff(sequences.offset) - 1).max(initial=0)))
        common = execution_of([self.loaded[i] for i in shifted], sequences) if shifted else None
        own = [i for i in wanted.own if execution_of([self.loaded[i]], sequences) == common]
        found = {i: self.loaded[i].score(sequences, progress) for i in wanted.own if i not in own}
        together = self._together(own, shifted, wanted.shifts, sequences, progress) if shifted else []
        found |= zip(own, together, strict=False)
        return [*(found[i] for i in wanted.own), *together[len(own) :]]

    def _together(
        self,
        own: Sequence[int],
        shifted: Sequence[int],
        shifts: Sequence[Shift],
        sequences: Sequences,
        progress: OnProgress | None,
    ) -> list[Scores]:
        """Own scores of models that run alike, and those of the shifts, from the same forwards."""
        used = sorted({*own, *shifted})
        place = {i: k for k, i in enumerate(used)}
        forwards = [self.loaded[i].forward for i in used]
        for i in used:
            head_of(self.loaded[i])

        def score(states: tuple[Tensor, ...], row_T: Tensor, token_T: Tensor) -> list[Scored]:
            self._running = None
            found = [forwards[place[i]].score(states[place[i]], row_T, token_T) for i in own]
            for shift in shifts:
                base, tuned, ref = (forwards[place[i]].headed(states[place[i]]) for i in shift[:3])
                out = emulated_logprobs(
                    base, tuned, ref, shift.betas, row_T, token_T, vocab_size=self.vocabulary
                )
                found += zip(out.logprob_BT, out.greedy_BT, strict=True)
            return found

        count = len(own) + sum(len(shift.betas) for shift in shifts)
        loglik_KS = np.zeros((count, len(sequences)))
        greedy_KS = np.ones((count, len(sequences)), dtype=bool)
        with torch.inference_mode():
            for part in parts_of([self.loaded[i] for i in shifted], sequences):
                most = head_rows(self.loaded[0].device)
                for k, targets in enumerate(scored(self._rows(part, used, progress), score, most)):
                    mine = summed(targets, len(part.sequences))
                    loglik_KS[k, part.number_S], greedy_KS[k, part.number_S] = mine
        return [Scores(loglik_S, greedy_S) for loglik_S, greedy_S in zip(loglik_KS, greedy_KS, strict=True)]

    def _rows(self, part: Part, used: Sequence[int], progress: OnProgress | None) -> Iterator[Rows]:
        """The rows of each batch of all models, whose tokens and targets are the same."""
        tokens = min(self.loaded[i].plain_tokens for i in used)
        streams = [
            self._stream(self.loaded[i], part, progress if i == used[-1] else None, tokens) for i in used
        ]
        for together in zip(*streams, strict=True):
            yield together[0]._replace(states=tuple(rows.states[0] for rows in together))

    def _stream(
        self, backend: TorchBackend, part: Part, progress: OnProgress | None, tokens: int
    ) -> Iterator[Rows]:
        """One model's rows; notes that it is the one that runs."""
        self._running = backend
        backend.settle()
        rows = backend.rows(part, progress, tokens)
        while (found := next(rows, None)) is not None:
            yield found
            self._running = backend


class Execution(NamedTuple):
    """How models run some sequences."""

    ways: tuple[tuple[str, int], ...]  # the fastest first, and up to how many tokens fed each is used
    packed: int  # tokens of a packed batch
    tokens: int  # of another


def execution_of(backends: Sequence[TorchBackend], sequences: Sequences) -> Execution:
    """The fastest ways that all of these models have."""
    longest, done = int((np.diff(sequences.offset) - 1).max(initial=0)), 0
    ways = []
    for way in WAYS:
        most = min(longest, *(longest_exact(backend, way) for backend in backends))
        if most > done:
            ways.append((way, most))
            done = most
    return Execution(tuple(ways), min(map(packed_tokens, backends)), min(b.plain_tokens for b in backends))


def parts_of(backends: Sequence[TorchBackend], sequences: Sequences) -> list[Part]:
    """The sequences by the way in which they run: as one of the models has packed them for itself where that will do."""
    execution = execution_of(backends, sequences)
    for backend in backends:
        if execution_of([backend], sequences) == execution:
            return backend.parts(sequences)
    packer, done, found = min(backends, key=packed_tokens), 0, []
    length_S = np.diff(sequences.offset) - 1
    for way, most in execution.ways:
        index = np.flatnonzero((length_S > done) & (length_S <= most))
        if len(index):
            found.append(packer.part(way, sequences.take(index), index))
        done = most
    return found


def packed_tokens(backend: TorchBackend) -> int:
    return min(backend.batch_tokens, backend.proof.tokens)


def head_of(backend: TorchBackend) -> Head:
    """A model's head. Raises UserError where it makes its logits otherwise, which no shift can be added to."""
    head: Head | None = backend.forward.head
    if head is None:
        raise UserError(
            f"{backend.checkpoint} makes its logits in an output layer of its own, so they cannot be shifted: leave it out"
        )
    return head


def longest_exact(backend: TorchBackend, way: str) -> int:
    """Up to how many tokens a model is exact in a way, 0 where it does not run so."""
    return max(
        (mode.longest for mode in backend.modes if mode.way == way and mode.head is not None), default=0
    )
