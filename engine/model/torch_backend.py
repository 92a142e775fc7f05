"""Scoring in PyTorch: any Hugging Face causal LM, one forward over a packed token trie, the head on scored rows alone.

The model runs as it is, through the attention interface of transformers: its linear layers see one flat row of N tokens
without padding, and `TreeAttention` gives each token its own ancestors (packing.py). Whether a model really computes the same
that way is proven for its configuration (proof.py) and looked at once more for each checkpoint in its own precision; sequences
beyond the proof run one way lower: packed, padded, each length by itself. Whatever raises does so too, and the notes say why.

Cost: 2 x parameters FLOPs for each distinct token (fewer in the last layer: last_layer.py), 2 x D x V for each scored row;
memory beyond weights: N x widest activation, and a few MB for the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from evalengine.checkpoints import Checkpoint, weights
from evalengine.checkpoints.pretrained import Loaded, Pretrained
from evalengine.errors import ModelError, UserError
from evalengine.kernels.tree_attention import kernel_of
from evalengine.model import compiled, proof
from evalengine.model.forward import (
    Forward,
    Rows,
    Targets,
    embedding_rows,
    head_candidates,
    out_of_memory,
    vocabulary_of,
)
from evalengine.model.proof import Mode, Proof
from evalengine.plan import packing
from evalengine.plan.encoding import OnProgress, Scores, Sequences, SequenceTooLarge, window_of
from evalengine.untrusted import reason

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Nats by which the packed and the plain score of a token may differ on a checkpoint's own weights. The proof has shown that
# both are one computation; this is for what it cannot see: a device's kernels that go wrong, weights out of all scale.
ROUNDING = {"float32": 3e-4, "float16": 0.1, "bfloat16": 0.5}


# Tokens of the batch on which compiled layers are tried first, on a CPU and on a GPU.
CHECKED, CHECKED_GPU = 256, 4096


class Part(NamedTuple):
    """Sequences that run in one way: which they are, and they themselves."""

    way: str  # a Mode's
    number_S: np.ndarray
    sequences: Sequences
    batches: list[packing.Batch]  # of "packed"


def device_of(name: str | None) -> torch.device:
    """The device of that name; None: a GPU where there is one. Raises UserError for one that cannot be used here."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # some devices, such as meta, hold no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # What PyTorch raises differs by device.
        raise UserError(
            f"--device {name} cannot be used here: give cpu, or leave --device out ({reason(error)})"
        ) from error
    return device


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
        compile: str = "auto",
    ) -> None:
        self.device = device_of(device)
        self.dtype = dtype or ("float32" if self.device.type == "cpu" else "bfloat16")
        self.batch_tokens = batch_tokens or (2048 if self.device.type == "cpu" else 32768)
        self.compile = compiled.wanted(compile, self.device)  # the decoder layers of packed batches
        # parameters of a model for which that is done
        self.smallest = compiled.SMALLEST if compile == "auto" else 0
        if self.compile:
            compiled.keep_kernels()
            if self.device.type == "cuda":
                compiled.start_workers()
        self._pretrained = Pretrained(DTYPES[self.dtype], allow_pickle, trust_remote_code)
        self.model: Any = None  # a transformers PreTrainedModel
        self.forward: Any = None  # how it runs, a Forward
        self.proof: Proof  # of its architecture
        self.modes: list[Mode] = []  # of those proven, the ones that have not failed on this checkpoint
        self.notes: list[str] = []  # what the user should know about how the loaded model runs
        self.checkpoint = ""  # its name
        # way and head of modes that failed on it, and why
        self._failed: dict[tuple[str, int | None], str] = {}
        self._not_compiled: dict[str, str] = {}  # architectures whose layers cannot be, and why
        self._loaded: Loaded | None = None
        self._architecture = ""  # of the loaded model
        self._proofs: dict[str, Proof] = {}  # by architecture
        # by identity of the tokens
        self._parts: dict[int, tuple[Sequences, Proof, list[Mode], list[Part]]] = {}

    def learn_with(self, other: TorchBackend) -> None:
        """What either finds out about an architecture holds for both from now on."""
        self._proofs, self._not_compiled = other._proofs, other._not_compiled

    # --- loading

    def load(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint, in place if the module of the previous one fits. Raises UserError."""
        loaded = self._loaded
        self._loaded = None  # what fails on the way is made anew for the next checkpoint
        known = None if loaded is None else self._proofs[loaded.architecture]
        if loaded is None or known is None or known.rewrites or not loaded.refill(checkpoint):
            self.model = self.forward = loaded = None  # not two modules at a time
            self._parts.clear()
            read = self._pretrained.read
            if checkpoint.base is not None:
                from evalengine.checkpoints.adapters import merged

                read = partial(merged, self._pretrained)
            loaded = read(checkpoint).to(self.device)
            self.model = loaded.model
            self.forward = Forward(self.model, self.device, DTYPES[self.dtype])
        name = weights.non_finite(self.model)
        if name is not None:
            raise UserError(
                f"{checkpoint.name} has NaN or infinite weights ({name}): it is not scored; check its training"
            )
        self.checkpoint, self._architecture = checkpoint.name, loaded.architecture
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
        capped = min(length, window_of(config) or length)
        try:
            found = proof.prove(config, capped, self.batch_tokens, type(self.model))
        except UserError as error:
            raise UserError(f"{self.checkpoint} cannot be scored: {error}") from None
        if found.apart is None:  # nothing is known of its twin
            found = found._replace(apart=self._apart())
        self._proofs[self._architecture] = found._replace(length=length)
        return self._proofs[self._architecture]

    def _apart(self) -> bool:
        """Whether the rows of the loaded model's own forward leave each other alone. What cannot run is said in `_check`."""
        try:
            return proof.apart(self.forward, self.batch_tokens, vocabulary_of(self.model))
        except Exception:
            return False

    @property
    def plain_tokens(self) -> int:
        """Tokens of a forward that is not packed: of one sequence alone where those of a batch change each other."""
        return self.batch_tokens if self.proof.apart else 1

    def _use(self, found: Proof) -> None:
        """Runs the loaded model as it is proven from now on, but for what failed; notes why not in the fastest mode."""
        self.proof = found
        self.forward.release()
        why_not = self._not_compiled.get(self._architecture) or compiled.obstacle(self.model)
        packed = [mode for mode in found.modes if mode.way == "packed"]
        large = sum(p.numel() for p in self.model.parameters()) >= self.smallest
        faster = [
            mode._replace(compiled=True) for mode in packed if self.compile and large and why_not is None
        ]
        self.modes = [mode for mode in (*faster, *found.modes) if (mode.way, mode.head) not in self._failed]
        first, why = self.modes[0], next(reversed(self._failed.values()), found.why)
        self.forward.head = None if first.head is None else head_candidates(self.model)[first.head]
        self.forward.use(self._architecture, first.last_layer, first.compiled)
        if first.head is None:
            self._note(f"its output layer is its own ({why}): logits are made for whole sequences (slower)")
        elif first.way != "packed":
            self._note(f"runs one sequence per choice, because {why}")
        elif self.compile and large and why_not is not None:
            self._note(f"its layers run as they are, not compiled (slower): {why_not}")
        if first.way != "packed" and not found.apart:
            self._note(
                "runs every sequence by itself (slower), because those of a batch change each other's scores"
            )

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _check(self) -> None:
        """Compares the fastest mode with a plain forward on this checkpoint's own weights, token by token: short forwards.

        Compiled layers are tried on a longer batch as well, and first: code for any length is made for it, and holds for others.
        """
        vocabulary = vocabulary_of(self.model)
        few = proof.forks(proof.SHORTEST, vocabulary)
        most = CHECKED if self.device.type == "cpu" else CHECKED_GPU
        try:
            truth = self.forward.reference(few, self.plain_tokens)
        except Exception as error:
            raise UserError(f"{self.checkpoint} cannot run here: {reason(error)}") from None
        while len(self.modes) > 1:
            first, cases = self.modes[0], [few]
            if first.compiled:
                tokens = min(self.batch_tokens, self.proof.tokens, most)
                cases.insert(0, proof.fill(few, tokens, vocabulary))
            try:
                gap = max(proof.gap(self._run(self.part(first.way, case)), truth) for case in cases)
                if gap <= ROUNDING[self.dtype]:
                    return
                why = f"on its weights scores then differ by {gap:.2g} nats"
            except Exception as error:
                if out_of_memory(error):
                    if first.compiled:
                        self.halve(few)
                        continue
                    raise UserError(f"{self.checkpoint} cannot run here: {reason(error)}") from None
                why = reason(error)
            self.fail(why)

    def fail(self, why: str) -> None:
        """This checkpoint does not run in its fastest mode: the next one is used."""
        first = self.modes[0]
        if first.compiled:
            self._not_compiled[self._architecture] = why
        else:
            self._failed[first.way, first.head] = why
        self._use(self.proof)

    # --- scoring

    def score(self, sequences: Sequences, progress: OnProgress | None = None) -> Scores:
        """Scores every sequence. `progress` is called with the number of sequences that each forward finished.

        Where memory runs out, batches are halved and all is run again; where a way raises, the next one runs. UserError where
        one sequence alone is too much, where no way is left, and where the tokens are not the model's.
        """
        self.check_ids(sequences)
        while True:
            try:
                return self._score(sequences, progress)
            except UserError:
                raise
            except Exception as error:
                if out_of_memory(error):
                    self.halve(sequences)
                elif len(self.modes) > 1:
                    self.fail(reason(error))
                else:
                    raise ModelError(
                        f"{self.checkpoint} cannot be scored: {type(error).__name__}: {reason(error)}"
                    ) from None

    def check_ids(self, sequences: Sequences) -> None:
        """Raises UserError where a token is not one of the model's."""
        sequences.check_ids(embedding_rows(self.model))

    def _score(self, sequences: Sequences, progress: OnProgress | None) -> Scores:
        loglik, greedy = np.zeros(len(sequences)), np.ones(len(sequences), dtype=bool)
        for part in self.parts(sequences):
            self.settle()
            scores = summed(self._run(part, progress), len(part.sequences))
            loglik[part.number_S], greedy[part.number_S] = scores
        return Scores(loglik, greedy)

    def settle(self) -> None:
        """Rotary embeddings as they were before a long sequence, where one may have changed them."""
        if self.modes[0].way != "packed" or self.modes[0].longest < self.proof.length:
            self.forward.reset()

    def _run(self, part: Part, progress: OnProgress | None = None) -> Targets:
        targets: Targets = self.forward.scored(self.rows(part, progress))
        return targets

    def rows(
        self, part: Part, progress: OnProgress | None = None, tokens: int | None = None
    ) -> Iterator[Rows]:
        """The scored rows of a part's batches, one after another. tokens: of a forward that is not packed, if not its own."""
        if part.way == "packed":
            return self.forward.packed_rows(part.batches, progress)
        tokens = self.plain_tokens if tokens is None else tokens
        return self.forward.plain_rows(part.sequences, tokens, part.way == "padded", progress)

    def prove_up_to(self, longest: int) -> None:
        """Proves what holds for sequences of so many tokens fed, where that is not known yet."""
        if longest > self.proof.length:
            self._use(self._prove(1 << (longest - 1).bit_length()))

    def parts(self, sequences: Sequences) -> list[Part]:
        """The sequences by the way they run; what is longer than has been proven is proven first."""
        length_S = np.diff(sequences.offset) - 1
        self.prove_up_to(int(length_S.max(initial=0)))
        kept = self._parts.get(id(sequences.token_S))
        if kept is not None and kept[1:3] == (self.proof, self.modes):
            return kept[3]
        found, left_S = [], np.ones(len(sequences), dtype=bool)
        for mode in self.modes:
            index = np.flatnonzero(left_S & (length_S <= mode.longest))
            if len(index):
                mine = sequences if len(index) == len(sequences) else sequences.take(index)
                found.append(self.part(mode.way, mine, index))
                left_S[index] = False
        if self.modes[0].way == "packed" and len(found) > 1:
            self._note(
                f"sequences of more than {self.modes[0].longest} tokens do not share prefixes: the model's arithmetic changes"
                " there"
            )
        self._parts[id(sequences.token_S)] = (sequences, self.proof, self.modes, found)
        return found

    def part(self, way: str, sequences: Sequences, number_S: np.ndarray | None = None) -> Part:
        tokens = min(self.batch_tokens, self.proof.tokens)
        gathered = kernel_of(self.device) is None
        batches = list(packing.pack(sequences, tokens, gathered=gathered)) if way == "packed" else []
        return Part(way, np.arange(len(sequences)) if number_S is None else number_S, sequences, batches)

    def halve(self, sequences: Sequences) -> None:
        """Smaller batches from now on. Raises SequenceTooLarge where the longest sequence alone is one."""
        longest = int(np.diff(sequences.offset).max()) - 1
        if self.batch_tokens <= longest:
            error = SequenceTooLarge(
                f"out of memory on a single item of {longest} tokens: use a machine with more memory, or --dtype bfloat16"
            )
            error.sequence = int(np.diff(sequences.offset).argmax())
            raise error
        self.batch_tokens = max(longest, self.batch_tokens // 2)
        self._parts.clear()
        said = "ran out of memory: scored with --batch-tokens"
        self.notes = [note for note in self.notes if not note.startswith(said)]
        self.notes.append(f"{said} {self.batch_tokens}")


def summed(targets: Targets, sequences: int) -> Scores:
    """Targets to sequences: those without any have loglik 0 and greedy True."""
    loglik, greedy = np.zeros(sequences), np.ones(sequences, dtype=bool)
    np.add.at(loglik, targets.sequence_T, targets.logprob_T.astype(np.float64))
    greedy[targets.sequence_T[~targets.greedy_T]] = False
    return Scores(loglik, greedy)
