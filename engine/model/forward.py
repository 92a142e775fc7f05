"""The ways to run a model over sequences: as packed token tries, as padded rows, or each length by itself.

All end in the log-probability of every target. `reference` is by construction a plain forward of each sequence (rows of one
length need no padding and no mask) through the model's own output layer; whether the others equal it for a model is not decided
here (proof.py does).

Dims: N tokens, R scored rows, D hidden, V vocabulary, T targets, B sequences of a batch.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from evalengine.checkpoints.pretrained import text_config
from evalengine.kernels import logits_logprobs, target_logprobs
from evalengine.kernels.head import Head, HeadedRows
from evalengine.model import attention_operator
from evalengine.model.compiled import CompiledLayers
from evalengine.model.device_batch import on_device
from evalengine.model.last_layer import LastLayer
from evalengine.model.tree_attention import TreeAttention
from evalengine.plan import packing
from evalengine.plan.encoding import OnProgress, Sequences

# Scored rows gathered before the head runs, on a CPU and on a GPU: its weights are read once for all of them.
HEAD_ROWS, HEAD_ROWS_GPU = 1024, 16384
PLAIN_LOGITS = 64 << 20  # bytes of logits held at once where a model insists on its own output layer

# What configurations call a factor of the logits (or its inverse), and a soft-cap.
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")

Scored = tuple[Tensor, Tensor]  # (T,) log-probabilities, and whether each target was the argmax


class Rows(NamedTuple):
    """Scored rows of one forward of one model, or of several over the same tokens: each model's hidden states (or logits), and
    the (row, token, sequence) of each target."""

    states: tuple[Tensor, ...]  # (R, D) of each model
    row_T: np.ndarray
    token_T: np.ndarray
    sequence_T: np.ndarray


class Targets(NamedTuple):
    """Every target of some sequences: whose it is, its log-probability in nats, and whether it was the argmax.

    The targets of one sequence stand in their order; the sequences stand in the order in which they ran.
    """

    sequence_T: np.ndarray  # int32
    logprob_T: np.ndarray  # float32
    greedy_T: np.ndarray  # bool


class Forward:
    """A module and how it runs. `head` None: the model's own output layer, on the logits of whole sequences."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.attention = TreeAttention()
        self.head: Head | None = None
        self.last_layer: LastLayer | None = None  # runs that layer of packed batches on scored rows alone
        self.layers: CompiledLayers | None = None  # runs the layers of packed batches compiled
        configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
        self._configs = [(c, getattr(c, "_attn_implementation", None)) for c in configs.values()]
        self._in_tree = False  # whether attention layers now go through `attention`
        self._takes = inspect.signature(model.forward).parameters

    def use(self, architecture: str, last_layer: bool, compiled: bool) -> None:
        """Runs packed batches with the last layer narrowed, or with compiled layers, or both, from now on."""
        self.release()
        self.last_layer = LastLayer(self.model) if last_layer else None
        self.layers = CompiledLayers(self.model, architecture, self.last_layer) if compiled else None

    def release(self) -> None:
        """Every module as it was loaded."""
        for change in (self.layers, self.last_layer):
            if change is not None:
                change.release()
        self.layers = self.last_layer = None

    # --- the ways

    def plain(self, sequences: Sequences, batch_tokens: int, pad: bool = False) -> Targets:
        """Rows of one length together, the shortest first: nothing that depends on a batch's longest row can differ.

        `pad`: on the right, to the longest row of a batch of any lengths; a causal model's earlier tokens cannot see that.
        """
        return self.scored(self.plain_rows(sequences, batch_tokens, pad))

    @torch.inference_mode()
    def scored(self, rows: Iterator[Rows]) -> Targets:
        """The targets of rows, which are made as they are asked for."""
        most = 0 if self.head is None else head_rows(self.device)  # logits are not held longer than needed
        return scored(rows, lambda states, row_T, token_T: [self.score(states[0], row_T, token_T)], most)[0]

    def reference(self, sequences: Sequences, batch_tokens: int = 1) -> Targets:
        """`plain` through the model's own output layer, whatever `head` is."""
        head, self.head = self.head, None
        try:
            return self.plain(sequences, batch_tokens)
        finally:
            self.head = head

    def reset(self) -> None:
        """One token by itself: rotary embeddings that grew with a long sequence go back to their beginning."""
        self.plain(Sequences.of([np.zeros(2, np.int32)], [1]), 1)

    def _attend(self, tree: bool) -> None:
        """Sends attention through the tree, or as the model was loaded (a part beside the text model may differ)."""
        if tree != self._in_tree:
            for config, own in self._configs:
                config._attn_implementation = attention_operator.NAME if tree else own
            self._in_tree = tree

    # --- rows

    def packed_rows(self, batches: list[packing.Batch], progress: OnProgress | None = None) -> Iterator[Rows]:
        """The scored rows of every batch of token tries. Needs a head. Raises what the model's own code raises where it cannot
        run so."""
        takes_any = any(p.kind is p.VAR_KEYWORD for p in self._takes.values())
        if not takes_any and not {"position_ids", "attention_mask"} <= self._takes.keys():
            raise NotImplementedError("it takes no positions")
        for batch in batches:
            self._attend(tree=True)
            on = on_device(batch, self.device)
            self.attention.start(on)
            if self.last_layer is not None:
                # At least two, if one twice: no forward is empty (a kept prefix scores nothing), and none is compiled for
                # the special case of a single row.
                row_R = on.row_R if len(on.row_R) else on.row_R.new_zeros(1)
                self.last_layer.rows = row_R if len(row_R) > 1 else row_R.repeat(2)
            # Compiled for the tree alone: what it is compared with runs as the model's own code says.
            with contextlib.nullcontext() if self.layers is None else self.layers.running():
                hidden_ND = self._hidden(
                    input_ids=on.token_1N,
                    position_ids=on.position_1N,
                    attention_mask=torch.ones_like(on.token_1N),  # else it looks for borders in the positions
                )[0]
            if not batch.is_prefix:
                state_RD = hidden_ND[on.row_R]
                yield Rows((state_RD,), batch.target_row_T, batch.target_token_T, batch.target_sequence_T)
            if progress:
                progress(int(np.count_nonzero(np.diff(batch.target_sequence_T, prepend=-1))))

    def plain_rows(
        self, sequences: Sequences, batch_tokens: int, pad: bool, progress: OnProgress | None = None
    ) -> Iterator[Rows]:
        """The scored rows of every batch of `plain`."""
        self._attend(tree=False)
        if self.last_layer is not None:
            self.last_layer.rows = None
        lengths = np.diff(sequences.offset) - 1
        order = np.argsort(-lengths if pad else lengths, kind="stable")
        vocabulary = embedding_rows(self.model)
        at = 0
        while at < len(order):
            longest = int(lengths[order[at]])
            size = max(1, batch_tokens // longest)
            if self.head is None:
                size = max(1, min(size, PLAIN_LOGITS // (4 * longest * vocabulary)))
            if not pad:
                size = min(size, int((lengths[order[at:]] == longest).sum()))
            members = order[at : at + size]
            token_BN = torch.zeros(len(members), longest, dtype=torch.long)
            for b, s in enumerate(members):
                token_BN[b, : lengths[s]] = torch.from_numpy(sequences.tokens(s)[:-1].astype(np.int64))
            token_BN = token_BN.to(self.device)
            states = self._logits(token_BN) if self.head is None else self._hidden(input_ids=token_BN)
            rows, targets, owners = [], [], []
            for b, s in enumerate(members):
                ids, start = sequences.tokens(s), int(sequences.start[s])
                rows.append(b * longest + np.arange(start - 1, len(ids) - 1))
                targets.append(ids[start:])
                owners.append(np.full(len(ids) - start, s, dtype=np.int32))
            row_T = np.concatenate(rows)
            state_RD = states.flatten(0, 1)[torch.from_numpy(row_T).to(self.device)]
            yield Rows((state_RD,), np.arange(len(row_T)), np.concatenate(targets), np.concatenate(owners))
            if progress:
                progress(len(members))
            at += size

    def _logits(self, token_BN: Tensor) -> Tensor:
        out = self.model(input_ids=token_BN, **self._without_cache())
        return out.logits if hasattr(out, "logits") else out[0]

    def _hidden(self, **inputs: Any) -> Tensor:
        """What reaches the model's output layer, (B, N, D): the forward ends there."""
        layer = output_layer(self.model)

        def stop(_: Any, args: tuple[Tensor, ...]) -> NoReturn:
            raise _Reached(args[0])

        handle = layer.register_forward_pre_hook(stop)
        try:
            self.model(**inputs, **self._without_cache())
        except _Reached as reached:
            hidden: Tensor = reached.args[0]
            return hidden
        finally:
            handle.remove()
        raise NotImplementedError("its output layer is not called")

    def _without_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if "use_cache" in self._takes else {}

    # --- the head

    def score(self, state_RD: Tensor, row_T: Tensor, token_T: Tensor) -> Scored:
        """Targets of rows, through the head, or from the logits that the model's own output layer has made."""
        if self.head is None:
            out = logits_logprobs(state_RD, row_T, token_T)
        else:
            (state_RD, head) = self.headed(state_RD)
            weight_VD, bias_V, scale, softcap = head
            out = target_logprobs(
                state_RD, weight_VD, row_T, token_T, bias_V=bias_V, softcap=softcap, scale=scale
            )
        return out.logprob_T, out.greedy_T

    def headed(self, state_RD: Tensor) -> HeadedRows:
        """Rows as the head takes them: some models keep the residual stream in float32."""
        assert self.head is not None
        return HeadedRows(state_RD.to(self.head.w_VD.dtype), self.head)


def head_rows(device: torch.device) -> int:
    """Rows that are gathered before the head runs."""
    return HEAD_ROWS if device.type == "cpu" else HEAD_ROWS_GPU


def scored(
    rows: Iterator[Rows], score: Callable[[tuple[Tensor, ...], Tensor, Tensor], list[Scored]], most: int
) -> list[Targets]:
    """Scores rows as they come, `most` or more at a time: `score` of each model's states, and of (row, token) of the targets,
    gives one or several log-probabilities of every target. None where there are no rows."""
    waiting: list[Rows] = []
    owners: list[np.ndarray] = []
    results: list[list[Scored]] = []  # read at the end: a GPU is not waited for between batches

    def flush() -> None:
        if not waiting:
            return
        base = np.cumsum([0] + [len(r.states[0]) for r in waiting])
        states = tuple(
            torch.cat(parts) if len(parts) > 1 else parts[0]
            for parts in zip(*(r.states for r in waiting), strict=True)
        )
        row_T = np.concatenate([r.row_T + b for r, b in zip(waiting, base, strict=False)])
        token_T = np.concatenate([r.token_T for r in waiting])
        owners.extend(r.sequence_T for r in waiting)
        # Indices are checked here and moved by the kernel.
        results.append(score(states, torch.from_numpy(row_T), torch.from_numpy(token_T)))
        waiting.clear()

    for chunk in rows:
        waiting.append(chunk)
        if sum(len(r.states[0]) for r in waiting) >= most:
            flush()
    flush()
    if not results:
        return [Targets(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool))]
    found = []
    for parts in zip(*results, strict=True):
        logprob_T, greedy_T = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        found.append(Targets(np.concatenate(owners), logprob_T, greedy_T))
    return found


class _Reached(Exception):
    """The forward has reached the output layer, with these hidden states."""


def head_candidates(model: Any) -> list[Head]:
    """Heads this model may have, by the names that configurations use for scales and soft-caps; none if it has no layer."""
    layer = output_layer(model)
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if weight is None or weight.dim() != 2:
        return []
    scales: list[float] = [1.0]
    softcaps: list[float | None] = [None]
    for config in (model.config, text_config(model.config)):
        for names, found in ((SCALES, scales), (SOFTCAPS, softcaps)):
            for name in names:
                value = getattr(config, name, None)
                if isinstance(value, int | float) and value and value not in found:
                    found.append(float(value))
    scales += [1.0 / scale for scale in scales[1:]]
    return [
        Head(weight, bias, None if scale == 1.0 else scale, softcap)
        for softcap in reversed(softcaps)
        for scale in reversed(scales)
    ]


def output_layer(model: Any) -> Any:
    """The module that makes logits of hidden states, None where a model does not say."""
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def embedding_rows(model: Any) -> int:
    """How many ids can be fed; 2**31 where a model does not say."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return 1 << 31


def vocabulary_of(model: Any) -> int:
    """How many ids can be both fed and scored."""
    weight = getattr(output_layer(model), "weight", None)
    return min(embedding_rows(model), 1 << 31 if weight is None else int(weight.shape[0]))


def out_of_memory(error: BaseException) -> bool:
    """CUDA has its own exception; the CPU allocator's is a RuntimeError that only its words tell apart."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(word in str(error) for word in words)
