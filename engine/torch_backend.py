"""Scoring in PyTorch: any Hugging Face causal LM, one forward over a packed token trie, the head on scored rows alone.

The model runs as it is, through the attention interface of transformers: its linear layers see one flat row of N tokens
without padding, and `TreeAttention` gives each token its own ancestors (packing.py). Whether a model really computes the same
that way is proven for its configuration (proof.py) and looked at once more for each checkpoint in its own precision; sequences
beyond the proof run one way lower: packed, padded, each length by itself. Whatever raises does so too, and the notes say why.

Cost: 2 x parameters FLOPs for each distinct token (fewer in the last layer: last_layer.py), 2 x D x V for each scored row;
memory beyond weights: N x widest activation, and a few MB for the head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from evalengine import packing, proof, weights
from evalengine.checkpoints import Checkpoint
from evalengine.encoding import Sequences, SequenceTooLarge, window_of
from evalengine.errors import ModelError, UserError
from evalengine.forward import (
    Forward,
    Progress,
    Targets,
    embedding_rows,
    head_candidates,
    out_of_memory,
    vocabulary_of,
)
from evalengine.last_layer import LastLayer
from evalengine.pretrained import Loaded, Pretrained
from evalengine.proof import Proof
from evalengine.types import Scores
from evalengine.untrusted import reason

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Nats by which the packed and the plain score of a token may differ on a checkpoint's own weights. The proof has shown that
# both are one computation; this is for what it cannot see: a device's kernels that go wrong, weights out of all scale.
ROUNDING = {"float32": 3e-4, "float16": 0.1, "bfloat16": 0.5}


class Group(NamedTuple):
    """Sequences that run one way: which they are, and they themselves."""

    way: str  # "packed", "padded" or "alone"
    number_S: np.ndarray
    sequences: Sequences
    batches: list[packing.Batch]  # of "packed"


class TorchBackend:
    """Scores sequences with one checkpoint at a time; `load` swaps the next one's weights into the same module."""

    name = "torch"

    def __init__(
        self,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or ("float32" if self.device.type == "cpu" else "bfloat16")
        self.batch_tokens = batch_tokens or (2048 if self.device.type == "cpu" else 32768)
        self.allow_pickle = allow_pickle
        self._pretrained = Pretrained(DTYPES[self.dtype], allow_pickle, trust_remote_code)
        self.model: Any = None  # a transformers PreTrainedModel
        self.forward: Any = None  # how it runs, a Forward
        self.ways: Proof  # what is proven of it, less what failed on this checkpoint
        self.notes: list[str] = []  # what the user should know about how the loaded model runs
        self._name = ""  # of the checkpoint
        self._failed: dict[str, Any] = {}  # what this checkpoint does not do of what is proven
        self._loaded: Loaded | None = None
        self._architecture = ""  # of the loaded model
        self._proofs: dict[str, Proof] = {}  # by architecture
        self._groups: dict[int, tuple[Sequences, Proof, list[Group]]] = {}  # by identity of the tokens

    # --- loading

    def load(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint, in place if the module of the previous one fits. Raises UserError."""
        loaded = self._loaded
        self._loaded = None  # what fails on the way is made anew for the next checkpoint
        known = None if loaded is None else self._proofs[loaded.architecture]
        if loaded is None or known is None or known.rewrites or not loaded.refill(checkpoint):
            self.model = self.forward = loaded = None  # not two modules at a time
            self._groups.clear()
            read = self._pretrained.read
            if checkpoint.base is not None:
                from evalengine.adapters import merged

                read = partial(merged, self._pretrained)
            loaded = read(checkpoint).to(self.device)
            self.model = loaded.model
            self.forward = Forward(self.model, self.device, DTYPES[self.dtype])
        name = weights.non_finite(self.model)
        if name is not None:
            raise UserError(
                f"{checkpoint.name} has NaN or infinite weights ({name}): it is not scored; check its training"
            )
        self._name, self._architecture = checkpoint.name, loaded.architecture
        self.notes, self._failed = list(loaded.notes), {}
        self._use(self._proofs.get(loaded.architecture) or self._prove(proof.FIRST))
        self._check()
        self._loaded = loaded

    def close(self) -> None:
        """Nothing outlives the process."""

    # --- is the fast way the same way?

    def _prove(self, length: int) -> Proof:
        """What holds for this configuration up to `length` tokens fed. Raises UserError where it is not causal."""
        config = self.model.config
        window = window_of(config, None, default=length)
        try:
            found = proof.prove(config, min(length, window), self.batch_tokens, type(self.model))
        except UserError as error:
            raise UserError(f"{self._name} cannot be scored: {error}") from None
        self._proofs[self._architecture] = found._replace(length=length)
        return self._proofs[self._architecture]

    def _use(self, ways: Proof) -> None:
        """Runs the loaded model in these ways from now on, and notes why not in the fastest one."""
        self.ways = ways._replace(**self._failed)
        self.forward.head = None if self.ways.head is None else head_candidates(self.model)[self.ways.head]
        if self.forward.last_layer is not None:
            self.forward.last_layer.release()
        self.forward.last_layer = LastLayer(self.model) if self.ways.last_layer else None
        if self.ways.head is None:
            self._note(
                f"its output layer is its own ({self.ways.why_own_head}): logits are made for whole sequences (slower)"
            )
        elif not self.ways.packed:
            self._note(f"runs one sequence per choice, because {self.ways.why_not_packed}")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _check(self) -> None:
        """Compares the ways with a plain forward on this checkpoint's own weights, token by token: two short forwards."""
        few = proof.forks(proof.SHORTEST, vocabulary_of(self.model))
        packed = list(packing.pack(few, self.batch_tokens, self._block))
        try:
            truth = self.forward.reference(few, self.batch_tokens)
        except Exception as error:
            raise UserError(f"{self._name} cannot run here: {reason(error)}") from None
        if self.ways.packed:
            why = self._differs(truth, lambda: self.forward.packed(packed))
            if why is not None:
                self._fail(packed=0, why_not_packed=why)
        if self.ways.head is not None and not self.ways.packed:
            why = self._differs(truth, lambda: self.forward.plain(few, self.batch_tokens))
            if why is not None:
                self._fail(head=None, why_own_head=why)

    def _differs(self, truth: Targets, run: Callable[[], Targets]) -> str | None:
        try:
            gap = proof.gap(run(), truth)
        except Exception as error:
            if out_of_memory(error):
                raise UserError(f"{self._name} cannot run here: {reason(error)}") from None
            return reason(error)
        return None if gap <= ROUNDING[self.dtype] else f"on its weights scores then differ by {gap:.2g} nats"

    def _fail(self, **ways: Any) -> None:
        """This checkpoint does not do what is proven of its configuration."""
        self._failed |= ways
        self._use(self.ways)

    # --- scoring

    def score(self, sequences: Sequences, progress: Progress | None = None) -> Scores:
        """Scores every sequence. `progress` is called with the number of sequences that each forward finished.

        Where memory runs out, batches are halved and all is run again; where a way raises, the next one runs. UserError where
        one sequence alone is too much, where no way is left, and where the tokens are not the model's.
        """
        sequences.check_ids(embedding_rows(self.model))
        while True:
            try:
                return self._score(sequences, progress)
            except UserError:
                raise
            except Exception as error:
                if out_of_memory(error):
                    self._halve(sequences)
                else:
                    self._step_down(error)

    def _score(self, sequences: Sequences, progress: Progress | None) -> Scores:
        loglik, greedy = np.zeros(len(sequences)), np.ones(len(sequences), dtype=bool)
        for group in self.groups(sequences):
            if self.ways.packed < self.ways.length:
                self.forward.reset()
            if group.way == "packed":
                targets = self.forward.packed(group.batches, progress)
            else:
                pad = group.way == "padded"
                targets = self.forward.plain(group.sequences, self.batch_tokens, pad, progress)
            loglik[group.number_S], greedy[group.number_S] = summed(targets, len(group.sequences))
        return Scores(loglik, greedy)

    def groups(self, sequences: Sequences) -> list[Group]:
        """The sequences by the way they run; what is longer than has been proven is proven first."""
        kept = self._groups.get(id(sequences.token_S))
        if kept is not None and kept[1] == self.ways:
            return kept[2]
        length_S = np.diff(sequences.offset) - 1
        longest = int(length_S.max(initial=0))
        if longest > self.ways.length:
            self._use(self._prove(1 << (longest - 1).bit_length()))
        found = []
        packs_S = length_S <= self.ways.packed
        for way, mine_S in (("packed", packs_S), ("padded" if self.ways.padded else "alone", ~packs_S)):
            index = np.flatnonzero(mine_S)
            if len(index):
                mine = sequences if len(index) == len(sequences) else sequences.take(index)
                tokens = min(self.batch_tokens, self.ways.tokens)
                batches = list(packing.pack(mine, tokens, self._block)) if way == "packed" else []
                found.append(Group(way, index, mine, batches))
        if self.ways.packed and len(found) > 1:
            self._note(
                f"sequences of more than {self.ways.packed} tokens do not share prefixes: the model's arithmetic changes there"
            )
        self._groups[id(sequences.token_S)] = (sequences, self.ways, found)
        return found

    def packs(self, sequences: Sequences) -> bool:
        """Whether all of these sequences run in packed batches."""
        return all(group.way == "packed" for group in self.groups(sequences))

    def batches(self, sequences: Sequences) -> list[packing.Batch]:
        """The packed batches of these sequences, kept for the next checkpoint."""
        return [batch for group in self.groups(sequences) for batch in group.batches]

    @property
    def _block(self) -> int:
        return packing.BLOCK if self.device.type == "cpu" else 2 * packing.BLOCK

    def _halve(self, sequences: Sequences) -> None:
        """Smaller batches from now on. Raises SequenceTooLarge where the longest sequence alone is one."""
        longest = int(np.diff(sequences.offset).max()) - 1
        if self.batch_tokens <= longest:
            error = SequenceTooLarge(
                f"out of memory on a single item of {longest} tokens: use a machine with more memory, or --dtype bfloat16"
            )
            error.sequence = int(np.diff(sequences.offset).argmax())
            raise error
        self.batch_tokens = max(longest, self.batch_tokens // 2)
        self._groups.clear()
        said = "ran out of memory: scored with --batch-tokens"
        self.notes = [note for note in self.notes if not note.startswith(said)]
        self.notes.append(f"{said} {self.batch_tokens}")

    def _step_down(self, error: Exception) -> None:
        """The next slower way for this checkpoint. Raises UserError where there is none."""
        why = reason(error)
        if self.ways.packed:
            self._fail(packed=0, why_not_packed=why)
        elif self.ways.padded:
            self._fail(padded=False)
        elif self.ways.head is not None:
            self._fail(head=None, why_own_head=why)
        else:
            raise ModelError(f"{self._name} cannot be scored: {type(error).__name__}: {why}") from None


def summed(targets: Targets, sequences: int) -> Scores:
    """Targets to sequences: those without any have loglik 0 and greedy True."""
    loglik, greedy = np.zeros(sequences), np.ones(sequences, dtype=bool)
    np.add.at(loglik, targets.sequence_T, targets.logprob_T.astype(np.float64))
    greedy[targets.sequence_T[~targets.greedy_T]] = False
    return Scores(loglik, greedy)
