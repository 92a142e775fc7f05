"""Scoring in PyTorch: any Hugging Face causal LM, one forward over a packed token trie, the head on scored rows alone.

The model runs as it is, through the attention interface of transformers: its linear layers see one flat row of N tokens
without padding, and `TreeAttention` gives each token its own ancestors (packing.py). Whether a model really computes the same
that way is not taken on trust: on loading an architecture a small tree is compared with plain forwards. A model that fails
(recurrent, ALiBi, no attention interface) runs one padded sequence per choice instead, and says so.

Cost: 2 x parameters FLOPs for each distinct token (fewer in the last layer: last_layer.py), 2 x D x V for each scored row;
memory beyond weights: N x widest activation, and a few MB for the head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalengine import packing, weights
from evalengine.checkpoints import Checkpoint, weight_files
from evalengine.encoding import Sequences, SequenceTooLarge
from evalengine.errors import UserError
from evalengine.kernels import logits_logprobs, target_logprobs
from evalengine.last_layer import LastLayer
from evalengine.pretrained import Pretrained, architecture_of, first_line
from evalengine.tree_attention import TreeAttention, moved, on_device

HEAD_ROWS = (
    1024  # scored rows gathered before the head runs: the LM head's weights are read once for all of them
)
PLAIN_LOGITS = 64 << 20  # logits held at once where a model insists on its own head
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class SequenceScores(NamedTuple):
    """Per sequence: summed log-likelihood of its targets in nats (float64), and whether each was the argmax."""

    loglik: np.ndarray
    greedy: np.ndarray


class Head(NamedTuple):
    """The output layer: logits = softcap * tanh(scale * (h @ weight.T + bias) / softcap)."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float | None
    softcap: float | None


class Rows(NamedTuple):
    """Scored rows of one forward: hidden states (or logits), and the (row, token, sequence) of each target."""

    state_RD: Tensor
    row_T: np.ndarray
    token_T: np.ndarray
    sequence_T: np.ndarray


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
        self._pretrained = Pretrained(self.device, DTYPES[self.dtype], allow_pickle, trust_remote_code)
        self.attention = TreeAttention()
        self.model: Any = None  # a transformers PreTrainedModel
        self.head: Head | None = None
        self.notes: list[str] = []  # what the user should know about how the loaded model runs
        self._architecture = ""
        self._tree = True
        self._last: LastLayer | None = None
        self._packed: dict[int, tuple[Sequences, list[packing.Batch]]] = {}

    # --- loading

    def load(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint, in place if the module of the previous one fits. Raises UserError."""
        files = weight_files(checkpoint.path, self.allow_pickle)
        safe = all(file.suffix == ".safetensors" for file in files)
        stored = weights.headers(files) if safe else None
        architecture = architecture_of(checkpoint.path)
        if stored is not None:
            weights.plausible(json.loads(architecture), len(stored), checkpoint.name)
        if self.model is None or architecture != self._architecture:
            self.model, self.head, self._architecture = None, None, ""
            self._packed.clear()
            self.model = self._pretrained.build(checkpoint, self.attention)
            fresh = True
        else:
            fresh = False
        misfit = weights.fits(self.model, stored) if stored is not None else "pickled weights"
        if misfit is None:
            assert stored is not None
            weights.fill(self.model, stored)
        else:
            self.model, self._architecture = None, ""
            self.model = self._pretrained.load(checkpoint, misfit)
            fresh = True
        name = weights.non_finite(self.model)
        if name is not None:
            raise UserError(
                f"{checkpoint.name} has NaN or infinite weights ({name}): it is not scored; check its training"
            )
        if fresh:
            self._probe(checkpoint)
            self._architecture = (
                architecture  # only now: what failed on the way is built anew for the next checkpoint
            )

    # --- is the fast way the same way?

    def _probe(self, checkpoint: Checkpoint) -> None:
        """Compares packed with plain scoring on a tiny tree, and the head with the model's own logits."""
        assert self.model is not None
        self.notes = []
        self._packed.clear()
        self._last = None
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        ids = np.random.default_rng(0).integers(0, vocabulary, size=24).astype(np.int32)
        lists = [ids[:12], np.concatenate([ids[:8], ids[12:18]]), ids[18:24]]
        sequences = Sequences(
            np.concatenate(lists),
            np.concatenate([[0], np.cumsum([len(t) for t in lists])]),
            np.array([7, 8, 3], np.int32),
        )
        self._tree, self.head = False, None
        try:
            truth = self._score(sequences, self._plain(sequences, own_head=True), None)
        except Exception as error:
            raise UserError(f"{checkpoint.name} cannot run here: {first_line(error)}") from None
        tolerance = 2e-3 if self.dtype == "float32" else 0.25
        for head in head_candidates(self.model):
            if self._agrees(truth, lambda: self._plain(sequences), sequences, head, tolerance):
                self.head = head
                break
        else:
            self.notes.append("its output layer is its own: logits are made for whole sequences (slower)")
            return
        reason = None
        previous = self.model.config._attn_implementation
        try:
            self.model.set_attn_implementation(self.attention.name)
            if self._agrees(
                truth, lambda: self._tree_rows(self.batches(sequences)), sequences, self.head, tolerance
            ):
                self._tree = True
                self._narrow(truth, sequences, self.head, tolerance)
            else:
                reason = "its scores differ when sequences share a prefix"
        except Exception as error:
            reason = first_line(error)
            if out_of_memory(error):
                raise UserError(f"{checkpoint.name} cannot run here: {reason}") from None
        if not self._tree:
            self.model.set_attn_implementation(previous)
            self.notes.append(f"runs one sequence per choice, because {reason}")

    def _narrow(self, truth: SequenceScores, sequences: Sequences, head: Head, tolerance: float) -> None:
        """Runs the last layer on scored rows from now on, where that gives the same scores."""
        self._last = LastLayer(self.model)
        agrees = False
        try:
            rows = lambda: self._tree_rows(self.batches(sequences))  # noqa: E731
            agrees = self._agrees(truth, rows, sequences, head, tolerance)
        except Exception as error:  # whatever a model's own code makes of fewer rows: it then runs in full
            if out_of_memory(error):
                raise
        finally:
            if not agrees:
                self._last.release()
                self._last = None

    def _agrees(
        self,
        truth: SequenceScores,
        rows: Callable[[], Iterator[Rows]],
        sequences: Sequences,
        head: Head,
        tolerance: float,
    ) -> bool:
        scores = self._score(sequences, rows(), head)
        return bool(np.allclose(scores.loglik, truth.loglik, atol=tolerance, rtol=tolerance))

    # --- scoring

    def score(self, sequences: Sequences, progress: Callable[[float], None] | None = None) -> SequenceScores:
        """Scores every sequence. `progress` is called with the number of sequences that each forward finished.

        Where memory runs out, batches are halved and all is run again; UserError where one sequence alone is too much.
        """
        while True:
            try:
                if self._tree:
                    return self.score_batches(sequences, self.batches(sequences), progress)
                rows = self._plain(sequences, own_head=self.head is None, progress=progress)
                return self._score(sequences, rows, self.head)
            except (MemoryError, RuntimeError) as failed:
                if not out_of_memory(failed):
                    raise
            longest = int(np.diff(sequences.offset).max()) - 1
            if self.batch_tokens <= longest:
                error = SequenceTooLarge(
                    f"out of memory on a single item of {longest} tokens: use a machine with more memory, or --dtype bfloat16"
                )
                error.sequence = int(np.diff(sequences.offset).argmax())
                raise error
            self.batch_tokens = max(longest, self.batch_tokens // 2)
            self._packed.clear()
            said = "ran out of memory: scored with --batch-tokens"
            self.notes = [note for note in self.notes if not note.startswith(said)]
            self.notes.append(f"{said} {self.batch_tokens}")

    @property
    def shares_prefixes(self) -> bool:
        """Whether the loaded model runs packed batches; else each sequence runs by itself."""
        return self._tree

    def score_batches(
        self,
        sequences: Sequences,
        batches: list[packing.Batch],
        progress: Callable[[float], None] | None = None,
    ) -> SequenceScores:
        """Scores of the sequences in some of `batches(sequences)`; the others have loglik 0 and greedy True.

        For a model that shares prefixes. Raises what PyTorch raises where memory runs out.
        """
        return self._score(sequences, self._tree_rows(batches, progress), self.head)

    def batches(self, sequences: Sequences) -> list[packing.Batch]:
        """The packed batches of these sequences, kept for the next checkpoint."""
        kept = self._packed.get(id(sequences.token_S))
        if kept is None:
            block = packing.BLOCK if self.device.type == "cpu" else 2 * packing.BLOCK
            kept = (sequences, list(packing.pack(sequences, self.batch_tokens, block)))
            self._packed[id(sequences.token_S)] = kept
        return kept[1]

    @torch.inference_mode()
    def _tree_rows(
        self, batches: list[packing.Batch], progress: Callable[[float], None] | None = None
    ) -> Iterator[Rows]:
        assert self.model is not None
        for batch in batches:
            on = on_device(batch, self.device, DTYPES[self.dtype])
            self.attention.start(on)
            row_R = moved(batch.row_R, self.device)
            if self._last is not None:
                self._last.rows = row_R if len(row_R) else row_R.new_zeros(1)  # a kept prefix scores nothing
            hidden = self.model.base_model(
                input_ids=on.token_1N, position_ids=on.position_1N, use_cache=False
            )[0][0]
            if not batch.is_prefix:
                h_RD = hidden[row_R]
                yield Rows(h_RD, batch.target_row_T, batch.target_token_T, batch.target_sequence_T)
            if progress:
                progress(len(np.unique(batch.target_sequence_T)))

    @torch.inference_mode()
    def _plain(
        self, sequences: Sequences, own_head: bool = False, progress: Callable[[float], None] | None = None
    ) -> Iterator[Rows]:
        """One padded row per sequence; rows are hidden states or, with `own_head`, the model's own logits."""
        assert self.model is not None
        lengths = np.diff(sequences.offset) - 1
        order = np.argsort(-lengths, kind="stable")
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        at = 0
        while at < len(order):
            longest = int(lengths[order[at]])
            size = max(1, self.batch_tokens // longest)
            if own_head:
                size = max(1, min(size, PLAIN_LOGITS // (4 * longest * vocabulary)))
            members = order[at : at + size]
            token_BT = torch.zeros(len(members), longest, dtype=torch.long)
            there_BT = torch.zeros(len(members), longest, dtype=torch.long)
            for b, s in enumerate(members):
                token_BT[b, : lengths[s]] = torch.from_numpy(sequences.tokens(s)[:-1].astype(np.int64))
                there_BT[b, : lengths[s]] = 1
            forward = self.model if own_head else self.model.base_model
            mask = {} if bool(there_BT.all()) else {"attention_mask": there_BT.to(self.device)}
            out = forward(input_ids=token_BT.to(self.device), use_cache=False, **mask)
            states_BTD = out.logits if own_head else out[0]
            rows, targets, owners = [], [], []
            for b, s in enumerate(members):
                ids, start = sequences.tokens(s), int(sequences.start[s])
                rows.append(b * longest + np.arange(start - 1, len(ids) - 1))
                targets.append(ids[start:])
                owners.append(np.full(len(ids) - start, s, dtype=np.int32))
            row_T = np.concatenate(rows)
            states = states_BTD.flatten(0, 1)[torch.from_numpy(row_T).to(self.device)]
            yield Rows(states, np.arange(len(row_T)), np.concatenate(targets), np.concatenate(owners))
            if progress:
                progress(len(members))
            at += size

    @torch.inference_mode()
    def _score(self, sequences: Sequences, rows: Iterator[Rows], head: Head | None) -> SequenceScores:
        """Runs the head over rows as they come, HEAD_ROWS at a time, and sums the targets of each sequence."""
        loglik = np.zeros(len(sequences), dtype=np.float64)
        greedy = np.ones(len(sequences), dtype=bool)
        waiting: list[Rows] = []
        owners: list[np.ndarray] = []
        results: list[tuple[Tensor, Tensor]] = []  # read at the end: a GPU is not waited for between batches

        def flush() -> None:
            if not waiting:
                return
            base = np.cumsum([0] + [len(r.state_RD) for r in waiting])
            state = torch.cat([r.state_RD for r in waiting]) if len(waiting) > 1 else waiting[0].state_RD
            row_T = np.concatenate([r.row_T + b for r, b in zip(waiting, base, strict=False)])
            token_T = np.concatenate([r.token_T for r in waiting])
            owners.extend(r.sequence_T for r in waiting)
            results.append(self._targets(state, row_T, token_T, head))
            waiting.clear()

        for chunk in rows:
            waiting.append(chunk)
            if sum(len(r.state_RD) for r in waiting) >= HEAD_ROWS or head is None:
                flush()
        flush()
        if results:
            owner_T = np.concatenate(owners)
            logprob_T, greedy_T = (torch.cat(parts).cpu().numpy() for parts in zip(*results, strict=True))
            np.add.at(loglik, owner_T, logprob_T.astype(np.float64))
            greedy[owner_T[~greedy_T]] = False
        return SequenceScores(loglik, greedy)

    def _targets(
        self, state: Tensor, row_T: np.ndarray, token_T: np.ndarray, head: Head | None
    ) -> tuple[Tensor, Tensor]:
        row, token = torch.from_numpy(row_T), torch.from_numpy(token_T)  # checked here, moved by the kernel
        if head is None:
            out = logits_logprobs(state, row, token)
        else:
            out = target_logprobs(
                state, head.weight_VD, row, token, bias_V=head.bias_V, softcap=head.softcap, scale=head.scale
            )
        return out.logprob_T, out.greedy_T


def head_candidates(model: Any) -> Iterator[Head]:
    """Heads this model may have, by the names that configurations use for scales and soft-caps."""
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() != 2:
        return
    config = getattr(model.config, "text_config", None) or model.config
    softcap = getattr(config, "final_logit_softcapping", None)
    scales: list[float | None] = [None]
    if getattr(config, "logit_scale", None):
        scales.append(float(config.logit_scale))
    if getattr(config, "logits_scaling", None):
        scales.append(1.0 / float(config.logits_scaling))
    for scale in reversed(scales):
        yield Head(weight, getattr(layer, "bias", None), scale, softcap)


def out_of_memory(error: BaseException) -> bool:
    """CUDA has its own exception; the CPU allocator's is a RuntimeError that only its words tell apart."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in str(error) for word in words
    )
