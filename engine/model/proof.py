"""Which fast ways compute what a model computes: tried once for a configuration, on a twin with weights of our own.

Packing, padding, the narrowed last layer and the fused output layer are exact for most architectures and wrong for some
(recurrent states, ALiBi, rotary factors that depend on the longest row, windows made outside the attention interface). That is a
property of the architecture and its configuration, never of a checkpoint's weights or dtype. So each way is run on the twin
(twin.py) over sequences that reach the longest length to come, share beginnings at all depths and stand beside longer
neighbours, and is compared with a plain forward of each sequence by itself, token by token. What is allowed is rounding, which
deep models amplify: where it decides, it is measured on the twin. Where a way holds only up to some length, that length is
found among the numbers in the configuration.

Cost: for each configuration and power of two of the longest sequence, half a second with 512 tokens, and two to three with 2,048
or 4,096 where all layers are equal; more where the twin keeps more of them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evalengine.errors import UserError
from evalengine.model import twin
from evalengine.model.forward import Forward, Targets, head_candidates, vocabulary_of
from evalengine.model.last_layer import LastLayer
from evalengine.plan import packing
from evalengine.plan.encoding import Sequences
from evalengine.untrusted import reason

CLOSE = 1e-4  # nats a token, in float32; of log-probabilities below -10, a hundred-thousandth
# Layers amplify rounding: where it alone moves scores by more than that, so many times as much is allowed, up to a limit.
ROUNDING, LIMIT = 4.0, 1e-3
SHORTEST = 12  # tokens fed: what no way gets right at this length it never gets right
DRAWS = 4  # random trees where a way holds for some lengths alone, or might hold by luck
TRIAL_TOKENS = (
    2048  # tokens of a batch in which lengths are tried; the whole batch is tried with short sequences
)
LARGEST = 1 << 30  # bytes of a tensor in the proof; attention that is square in the batch gets smaller ones
FIRST = 512  # tokens fed that the first proof covers; later ones double
DIFFERS = "its scores differ when sequences share a prefix"
ANY = 1 << 62  # tokens: as many as there are

Key = tuple[int, int, int]  # the arguments of `Trial.tree`: length, shared, draw


class Mode(NamedTuple):
    """One way to run a model, and up to how many tokens fed it is exact."""

    way: str  # "packed" (token tries), "padded" (rows of any lengths) or "alone" (rows of one length)
    head: int | None = None  # which of the model's head candidates it uses; None: its own output layer
    longest: int = ANY
    last_layer: bool = False  # that one runs on scored rows alone
    compiled: bool = False  # the layers are, which no proof covers


class Proof(NamedTuple):
    """What was found for sequences of up to `length` tokens fed.

    The modes are those that are exact, the fastest first; the last one is a plain forward, exact by construction where the rows
    of a batch leave each other `apart`, which experts with a capacity do not, and by itself anywhere.
    """

    length: int
    tokens: int  # of a packed batch at most
    modes: tuple[Mode, ...] = (Mode("alone"),)
    rewrites: bool = False  # a forward changes weights: the next checkpoint needs a module of its own
    why: str = ""  # why no faster mode is the first
    apart: bool | None = None  # whether rows of one plain forward leave each other alone; None: not tried


def prove(config: Any, length: int, tokens: int, model_class: Any = None) -> Proof:
    """Tries every way of running a configuration, of a model of this class where it is known.

    Raises UserError where the model is not causal, or random.
    """
    try:
        trial = Trial(twin.make(config, model_class=model_class))
        weights = {name: tensor.clone() for name, tensor in trial.forward.model.state_dict().items()}
        tried, first = trial.start(length)
        causal, again = trial.is_causal(tried), same(trial.longest(tried), first)
    except Exception as error:
        return Proof(length, tokens, why=f"its small copy does not run ({reason(error)})")
    if not causal:
        raise UserError(
            "its tokens attend to the right (it is not a causal language model), so it would see the answers it scores"
        )
    if not again:
        raise UserError("the same forward gives other scores when it is run again: they would mean nothing")
    kept = trial.forward.model.state_dict()
    rewrites = not all(torch.equal(kept[name], was) for name, was in weights.items())
    head, why = trial.head()
    modes = [Mode("alone")] if head is None else [Mode("alone", head), Mode("alone")]
    most = tokens
    if head is not None:
        packed, most = trial.packs(tried, tokens, head, config)
        why = trial.why if packed is None else ""
        modes = [packed, *modes] if packed else modes
    # What packs in whole batches has shown it there.
    separate = (modes[0].way == "packed" and most == tokens) or apart(trial.forward, tokens, trial.vocabulary)
    if modes[0].way != "packed" and separate and tried == length and trial.padded(length):
        modes = [Mode("padded", head), *modes]
    return Proof(length, most, tuple(modes), rewrites, why, separate)


class Trial:
    """A twin and its plain forwards: each sequence by itself, through the model's own output layer."""

    def __init__(self, model: Any) -> None:
        self.forward = Forward(model, torch.device("cpu"), torch.float32)
        self.vocabulary = min(vocabulary_of(model), twin.VOCABULARY)
        self.why = DIFFERS
        self._truths: dict[Key, Targets] = {}
        self._roundings: dict[Key, float] = {}

    def truth(self, length: int, shared: int = 0, draw: int = 0) -> Targets:
        """The targets of `tree(length, shared, draw)`."""
        key = (length, shared, draw)
        if key not in self._truths:
            self.forward.reset()
            self._truths[key] = self.forward.reference(self.tree(*key))
        return self._truths[key]

    def is_rounding(self, far: float, key: Key, close: float = CLOSE) -> bool:
        """Whether a `distance` from a truth is what rounding does to this model."""
        return far <= close or far <= min(LIMIT, ROUNDING * self.rounding(key))

    def rounding(self, key: Key) -> float:
        """The distance by which a truth moves where every weight moves by half of its last digit."""
        if key not in self._roundings:
            self._roundings[key] = self._rounding(key)
        return self._roundings[key]

    @torch.no_grad()
    def _rounding(self, key: Key) -> float:
        truth, generator = self.truth(*key), torch.Generator().manual_seed(0)
        weights = [p for p in self.forward.model.parameters() if p.is_floating_point()]
        kept = [p.clone() for p in weights]
        try:
            for p in weights:
                p.mul_(1.0 + 2.0**-24 * torch.randn(p.shape, generator=generator))
            self.forward.reset()
            return distance(*by_sequence(self.forward.reference(self.tree(*key)), truth))
        finally:
            for p, was in zip(weights, kept, strict=True):
                p.copy_(was)

    def start(self, length: int) -> tuple[int, Targets]:
        """The longest sequence of `tree(length)`, or of a shorter one where position tables end before; and its length."""
        for n in (length, 7 * length // 8):
            try:
                return n, self.longest(n)
            except Exception:
                continue
        return SHORTEST, self.longest(SHORTEST)

    def longest(self, length: int) -> Targets:
        """The longest sequence of `tree(length)`, whatever has run before."""
        return self.forward.reference(self.tree(length).take(np.arange(1)))

    def is_causal(self, length: int) -> bool:
        """Whether the logits of a row stay what they are when later tokens change."""
        ids = self.tree(length).tokens(0)
        kept = length - max(1, length // 4)
        other = np.concatenate([ids[:kept], ids[kept:] % (self.vocabulary - 1) + 1]).astype(np.int32)
        first, second = (self._plain(Sequences.of([t], [1])).logprob_T[: kept - 1] for t in (ids, other))
        return distance(second, first) <= CLOSE

    def head(self) -> tuple[int | None, str]:
        """The first candidate that gives the model's own log-probabilities, which is then used; else why there is none."""
        why = "it is none of the known forms"
        for i, head in enumerate(head_candidates(self.forward.model)):
            self.forward.head = head
            try:
                if same(self._plain(self.tree(SHORTEST)), self.truth(SHORTEST)):
                    return i, ""
            except Exception as error:
                why = reason(error)
        self.forward.head = None
        return None, why

    def packs(self, length: int, tokens: int, head: int, config: Any) -> tuple[Mode | None, int]:
        """The packed mode for sequences of up to `length`, None where nothing packs; and the tokens of its largest batch."""
        most = self.fits(tokens)
        most = longest_holding(lambda n: self.packed(SHORTEST, n), most, twin.lengths(config, most))
        if most < min(tokens, FIRST):
            return None, tokens
        for last_layer in (True, False):  # the narrowed one is what runs wherever that is exact
            self.forward.last_layer = LastLayer(self.forward.model) if last_layer else None
            if longest := self.longest_packed(min(length, most), min(most, TRIAL_TOKENS), config):
                return Mode("packed", head, longest, last_layer), most
            if self.forward.last_layer is not None:
                self.forward.last_layer.release()
        return None, most

    def longest_packed(self, length: int, tokens: int, config: Any) -> int:
        """Up to which of the lengths packed tries are exact in batches of `tokens`; 0 for none."""
        lengths = twin.lengths(config, length)
        longest = longest_holding(lambda n: self.packed(n, tokens), length, lengths)
        while 0 < longest < length and not all(
            self.packed(longest, tokens, draw) for draw in range(1, DRAWS)
        ):
            longest = max([n for n in lengths if n < longest], default=0)  # one draw may be lucky
        return longest

    def packed(self, length: int, tokens: int, draw: int = 0) -> bool:
        """Whether packed tries are exact up to `length`: in one batch of `tokens`, and behind a prefix that is kept."""
        tree = self.tree(length, 0, draw)
        cases = [((length, 0, draw), fill(tree, tokens, self.vocabulary))]
        if length > 2 * packing.SHARED_PREFIX:
            key = (length, length // 2, draw)
            cases.append((key, self.tree(*key)))
        return self._exact(self._packed, cases)

    def padded(self, length: int) -> bool:
        """Whether rows padded to the longest of them are exact up to `length`."""
        cases = [((length, 0, draw), self.tree(length, 0, draw)) for draw in range(DRAWS)]
        return self._exact(lambda s: self.forward.plain(s, len(s) * length, pad=True), cases)

    def _exact(self, run: Callable[[Sequences], Targets], cases: list[tuple[Key, Sequences]]) -> bool:
        """Whether sequences get the log-probabilities of their `truth`; those that it lacks are fillers."""
        try:
            for key, sequences in cases:
                self.forward.reset()
                if not self.is_rounding(distance(*by_sequence(run(sequences), self.truth(*key))), key):
                    self.why = DIFFERS
                    return False
        except Exception as error:  # whatever a model's own code makes of such a batch
            self.why = reason(error)
            return False
        return True

    def fits(self, tokens: int) -> int:
        """Tokens of the largest packed batch that is tried: fewer where the model makes a tensor of their number squared."""
        if tokens <= TRIAL_TOKENS:
            return tokens
        with Largest() as largest:
            self.packed(SHORTEST, TRIAL_TOKENS)
        if largest.elements < TRIAL_TOKENS**2:
            return tokens
        return min(tokens, TRIAL_TOKENS * max(1, math.isqrt(LARGEST // largest.bytes)))

    def tree(self, length: int, shared: int = 0, draw: int = 0) -> Sequences:
        """Sequences of at most `length` tokens fed: one that long, branches of it at all depths, and short ones.

        All begin with the same `shared` tokens; every token behind them is a target.
        """
        rng = np.random.default_rng([length, draw])

        def ids(n: int) -> np.ndarray:
            return rng.integers(1, self.vocabulary, size=n).astype(np.int32)

        longest = ids(length + 1)
        depths = sorted({1, 2, 5, length // 4, length // 2, 3 * length // 4, length - 3})
        branches = [
            np.concatenate([longest[:depth], ids(min(6, length + 1 - depth))])
            for depth in depths
            if max(shared, 1) <= depth < length
        ]
        short = [
            np.concatenate([longest[:shared], ids(size)])
            for size in (2, 3, 7, 13, 31)
            if shared + size <= length + 1
        ]
        lists = [longest, *branches, *short]
        return Sequences.of(lists, [max(1, shared)] * len(lists))

    def _packed(self, sequences: Sequences) -> Targets:
        batches = list(packing.pack(sequences, len(sequences.token_S)))
        return self.forward.scored(self.forward.packed_rows(batches))

    def _plain(self, sequences: Sequences) -> Targets:
        self.forward.reset()
        return self.forward.plain(sequences, 1)


class Largest(TorchDispatchMode):
    """Elements and bytes of the largest tensor that operations return in its context."""

    elements = bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


def apart(forward: Forward, tokens: int, vocabulary: int) -> bool:
    """Whether a row gets in a plain forward of `tokens` what it gets by itself: the first one, one amid others, and the last."""
    rng, some = np.random.default_rng(tokens), forks(SHORTEST, vocabulary)
    rows = max(3, tokens // SHORTEST)
    places = [0, rows // 2, rows - 1]
    lists = list(rng.integers(1, vocabulary, size=(rows, SHORTEST + 1)).astype(np.int32))
    starts = np.full(rows, SHORTEST)  # a target each, but for those that are compared
    for row, place in enumerate(places):
        lists[place], starts[place] = some.tokens(row), 1
    forward.reset()
    found = forward.reference(Sequences.of(lists, starts), rows * SHORTEST)
    asked = np.isin(found.sequence_T, places)
    renamed = np.searchsorted(places, found.sequence_T[asked]).astype(np.int32)
    forward.reset()
    alone, together = forward.reference(some), Targets(renamed, found.logprob_T[asked], found.greedy_T[asked])
    return distance(*by_sequence(together, alone)) <= LIMIT  # a row that is crowded out changes by nats


def longest_holding(holds: Callable[[int], bool], length: int, lengths: list[int]) -> int:
    """The greatest of `lengths` and `length` up to which something holds; 0 for none. What holds at one holds below it."""
    if not holds(min(SHORTEST, length)):
        return 0
    if holds(length):
        return length
    below = [n for n in lengths if SHORTEST < n < length]
    at = bisect.bisect_left(below, True, key=lambda n: not holds(n))
    return below[at - 1] if at else SHORTEST


def same(found: Targets, truth: Targets) -> bool:
    """Whether every token has the same log-probability, by rounding; NaN never is. What `truth` lacks are fillers."""
    return distance(*by_sequence(found, truth)) <= CLOSE


def distance(found_T: np.ndarray, truth_T: np.ndarray) -> float:
    """The largest difference of log-probabilities, in nats, below -10 in tenths of the log-probability; infinite for NaN."""
    far_T = np.abs(found_T - truth_T) / np.maximum(1, np.abs(truth_T) / 10)
    return float(np.nan_to_num(far_T, nan=np.inf).max(initial=0.0))


def gap(found: Targets, truth: Targets) -> float:
    """The largest difference of a token's log-probability, in nats; infinite for NaN."""
    a, b = by_sequence(found, truth)
    return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())


def by_sequence(found: Targets, truth: Targets) -> tuple[np.ndarray, np.ndarray]:
    """The log-probabilities of both in one order, for the sequences that `truth` has."""
    mine = found.sequence_T <= truth.sequence_T.max()
    owner_T, logprob_T = found.sequence_T[mine], found.logprob_T[mine]
    ours = logprob_T[np.argsort(owner_T, kind="stable")]
    return ours, truth.logprob_T[np.argsort(truth.sequence_T, kind="stable")]


# --- sequences to try things on


def forks(length: int, vocabulary: int) -> Sequences:
    """Three sequences of `length` tokens fed that part after a third and two thirds; a plain forward takes them together."""
    rng = np.random.default_rng(length)
    first = rng.integers(1, vocabulary, size=length + 1).astype(np.int32)
    lists = [first]
    for depth in (length // 3, 2 * length // 3):
        rest = rng.integers(1, vocabulary, size=length + 1 - depth).astype(np.int32)
        lists.append(np.concatenate([first[:depth], rest]))
    return Sequences.of(lists, [1, 1, 1])


def fill(sequences: Sequences, tokens: int, vocabulary: int) -> Sequences:
    """The sequences, and behind them as many others of up to 60 tokens fed, with one target each, as make `tokens` in all."""
    rng = np.random.default_rng(tokens)
    lists = [sequences.tokens(s) for s in range(len(sequences))]
    size = min(61, max(map(len, lists)))
    more = max(0, tokens - len(sequences.token_S)) // size
    fillers = rng.integers(1, vocabulary, size=(more, size)).astype(np.int32)
    return Sequences.of([*lists, *fillers], [*sequences.start, *[size - 1] * more])
