"""The vLLM backend: one engine kept warm for all checkpoints of an architecture.

An engine is started only for a configuration that vLLM computes as transformers does (proof.py). A checkpoint with the
configuration and the tensors of the one before it is swapped in: weights reloaded in place, then the prefix cache emptied, for
its keys and values are the old checkpoint's. A swap is believed only if digests of tensors agree with the file, and a canary
prompt scores the same with and without the cache, and otherwise than the old checkpoint did; an engine's first swap takes its
own weights once more, which must change nothing. Where any of that fails a new engine is started, and the notes say so.

Cost of a swap: reading the weights, and two short prompts; of a new engine: seconds, twice for a new configuration.
"""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evalengine.checkpoints import Checkpoint, fingerprint, weights
from evalengine.errors import UserError
from evalengine.model.proof import FIRST
from evalengine.model.torch_backend import DTYPES, ROUNDING
from evalengine.plan.encoding import OnProgress, Scores, Sequences
from evalengine.untrusted import printable, reason
from evalengine.vllm import SCORER, engine
from evalengine.vllm.proof import SETTINGS, VllmProof, make_twin
from evalengine.vllm.requests import Request, Requests, plan
from evalengine.vllm.worker import digest

ASK = 4096  # requests handed to the engine at a time: bounds their memory, and how long Ctrl-C waits
CANARY = 96  # tokens of the canary prompt: whole cache blocks on any platform
DIGESTS = 8  # tensors whose digests are compared after a swap, the largest first
DIGEST_BYTES = 64 << 20  # of a tensor at most

# By architecture and settings: facts, whichever backend found them.
_proofs: dict[tuple[str, ...], VllmProof] = {}


class VllmBackend:
    """Scores sequences inside vLLM."""

    name = "vllm"

    def __init__(
        self,
        *,
        dtype: str | None = None,
        batch_tokens: int | None = None,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        verbose: bool = False,
        **settings: Any,
    ) -> None:
        """`settings` go to vLLM's engine as they are (tensor_parallel_size, gpu_memory_utilization, max_model_len, ...)."""
        self.version = engine.require()
        engine.prepare(verbose)
        self.dtype = dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
        self.notes: list[str] = []
        self.redone = 0  # requests that lost a row to the prefix cache and were computed again
        self.swaps = 0  # checkpoints that an engine already running took over
        self._settings: dict[str, Any] = {"dtype": self.dtype, "trust_remote_code": trust_remote_code}
        self._settings["load_format"] = "auto" if allow_pickle else "safetensors"
        if batch_tokens:
            self._settings["max_num_batched_tokens"] = batch_tokens
        self._settings |= settings
        self._allow_pickle = allow_pickle
        self._llm: Any = None
        self._proof = VllmProof(0, ())  # of the configuration that runs
        self._identity: Any = None
        self._checkpoint: Any = None
        self._proven = False  # this engine took its own weights again, and nothing changed
        self._canary: Any = None  # how the loaded checkpoint scores the canary prompt
        self._plans: dict[int, tuple[Sequences, Requests]] = {}  # by identity of the tokens
        atexit.register(self.close)

    # --- loading

    def load(self, checkpoint: Checkpoint) -> None:
        """Makes `checkpoint` the one that is scored, in the running engine if it fits. Raises UserError."""
        if checkpoint.base is not None:
            raise UserError(
                f"{checkpoint.name} is an adapter, which the vLLM backend does not merge: use --backend torch"
            )
        files = checkpoint.weight_files(self._allow_pickle)
        stored: dict[str, weights.FileTensor] = {}  # none of pickled weights, which are not swapped in
        if all(file.suffix == ".safetensors" for file in files):
            stored = weights.headers(files)
            refuse_float8(stored)
            engine.check_files(checkpoint, files)
            weights.plausible(checkpoint.config, len(stored), checkpoint.name)
        shapes = [(name, held.dtype, held.shape) for name, held in sorted(stored.items())]
        identity = (checkpoint.architecture, shapes)
        self.notes = []
        if self._llm is not None and stored and identity == self._identity:
            check_tied(checkpoint, stored, self._proof)
            refused = self._swap(checkpoint, stored)
            if refused is None:
                self.swaps += 1
                self.notes.append(f"vLLM {self.version}, {SCORER}, warm engine")
                return
            self.notes.append(
                f"the running engine did not take its weights over ({refused}): a new engine was started"
            )
        self.close()
        self._plans.clear()
        self._checkpoint, self._identity = checkpoint, identity
        self._start(checkpoint, FIRST)
        try:
            check_tied(checkpoint, stored, self._proof)
            check_finite(checkpoint, self._canary)
        except UserError:
            self.close()
            raise
        self.notes.append(f"vLLM {self.version}, {SCORER}")

    def _start(self, checkpoint: Checkpoint, length: int) -> None:
        """An engine whose scores are proven up to `length` tokens fed. Raises UserError."""
        try:
            self._proof = self._prove(checkpoint, length)
            self._open(checkpoint, self._settings)
        except Exception as error:
            sentence = engine.failed(checkpoint, error)
            self.close(error)
            raise sentence from None

    def _open(self, checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
        self._llm = engine.start(checkpoint, settings)
        self._proven, self._canary = False, self._score_canary()

    def _prove(self, checkpoint: Checkpoint, length: int) -> VllmProof:
        """Compares vLLM with transformers on the checkpoint's twin, in an engine of its own. Raises UserError."""
        key = (checkpoint.architecture, repr(sorted(self._settings.items())))
        if key in _proofs and _proofs[key].length >= length:
            return _proofs[key]
        with tempfile.TemporaryDirectory(prefix="evalengine-twin-") as folder:
            twin = make_twin(checkpoint, Path(folder), bool(self._settings["trust_remote_code"]))
            self._open(twin.checkpoint, self._settings | SETTINGS)
            capped = min(length, self._limit)
            requests = plan(twin.sequences(capped))
            twin.check(self._ask(requests.requests)[0][requests.index_T], capped)
            self.close()
        _proofs[key] = VllmProof(length, twin.tied)
        return _proofs[key]

    def close(self, error: Exception | None = None) -> None:
        """Ends the engine and whatever processes it has; `error` is what it died of."""
        llm, self._llm = self._llm, None
        if llm is not None:
            engine.stop(llm, error)
            del llm  # the last reference: only now is all that it holds garbage
            engine.give_back_memory()

    # --- weights

    def _swap(self, checkpoint: Checkpoint, stored: dict[str, weights.FileTensor]) -> str | None:
        """Takes new weights into the running engine; None if that is proven, else why not."""
        before = self._canary
        try:
            if not self._proven:  # its own weights first: that must change nothing
                self._llm.collective_rpc("evalengine_swap", args=(str(self._checkpoint.path),))
                if not self.reset_prefix_cache() or not self._close_to(self._score_canary(), before):
                    return "taking its own weights again changes its scores"
                self._proven = True
            self._llm.collective_rpc("evalengine_swap", args=(str(checkpoint.path),))
            if not self.reset_prefix_cache():
                return "its prefix cache could not be emptied"
            wrong = self._differing_tensor(stored)
            if wrong is not None:
                return f"{wrong} is not what the file holds"
            cached, fresh = self._score_canary(), self._score_canary(use_cache=False)
        except Exception as error:
            return reason(error)
        if not self._close_to(cached, fresh):
            return "its prefix cache still held the previous checkpoint's states"
        if np.array_equal(cached, before) and fingerprint(checkpoint) != fingerprint(self._checkpoint):
            return "a test prompt scores as with the previous checkpoint"
        self._canary, self._checkpoint = cached, checkpoint
        return None

    def _close_to(self, a: np.ndarray, b: np.ndarray) -> bool:
        return bool(np.allclose(a, b, atol=ROUNDING[self.dtype], rtol=0))

    def reset_prefix_cache(self) -> bool:
        """Forgets the keys and values of every prompt so far. False if requests are still running."""
        return bool(self._llm.reset_prefix_cache())

    def _differing_tensor(self, stored: dict[str, weights.FileTensor]) -> str | None:
        """The first of a few tensors that the model and the file call by one name, and whose values differ."""
        names = sorted(
            (n for n in stored if stored[n].size <= DIGEST_BYTES), key=lambda n: (-stored[n].size, n)
        )
        for held in self._llm.collective_rpc("evalengine_tensors", args=(names,)):
            common = [name for name in names if name in held and tuple(held[name][0]) == stored[name].shape]
            for name in common[:DIGESTS]:
                meant = file_digest(stored[name], self.dtype)
                if not np.allclose(meant[1:], held[name][1:], rtol=1e-6, atol=1e-6):
                    return name
        return None

    def _score_canary(self, use_cache: bool = True) -> np.ndarray:
        """Log-probabilities on one fixed prompt."""
        size = min(CANARY, self._limit - 1) + 1
        ids = np.random.default_rng(0).integers(0, self._vocabulary, size=size).astype(np.int32)
        start = max(1, len(ids) - 4)
        sequences = Sequences(ids, np.array([0, len(ids)]), np.array([start], np.int32))
        return self._ask(plan(sequences).requests, use_cache)[0]

    # --- scoring

    def score(self, sequences: Sequences, progress: OnProgress | None = None) -> Scores:
        """Scores every sequence. `progress` is called with the number of sequences that each part finished."""
        if self._llm is None:  # it ended with the sequences before these
            self._start(self._checkpoint, FIRST)
        sequences.check_ids(self._vocabulary)
        longest = int(np.diff(sequences.offset).max(initial=1)) - 1
        if longest > self._limit:
            raise UserError(
                f"an item has {longest} tokens, and vLLM runs this model with {self._limit} at most: raise --vllm-arg"
                " max_model_len=N, or use --backend torch"
            )
        if longest > self._proof.length:
            self.close()
            self._start(self._checkpoint, 1 << (longest - 1).bit_length())
        requests = self._planned(sequences)
        found = [np.zeros((2, 0))]
        for at in range(0, len(requests.requests), ASK):
            part = requests.requests[at : at + ASK]
            try:
                found.append(self._ask(part))
            except KeyboardInterrupt:
                self.close()
                raise
            except Exception as error:
                sentence = (
                    f"vLLM's engine died ({reason(error)}): what was finished is kept; run the same command again, or with"
                    " --backend torch"
                )
                self.close(error)
                raise UserError(sentence) from None
            if progress:
                progress(len(sequences) * len(part) / len(requests.requests))
        logprob_T, greedy_T = np.concatenate(found, axis=1)[:, requests.index_T]
        check_finite(self._checkpoint, logprob_T)
        return Scores(
            np.add.reduceat(logprob_T, requests.start_S),
            np.logical_and.reduceat(greedy_T.astype(bool), requests.start_S),
        )

    def _planned(self, sequences: Sequences) -> Requests:
        key = id(sequences.token_S)
        if key not in self._plans:
            self._plans[key] = (sequences, plan(sequences))
        return self._plans[key][1]

    @property
    def _limit(self) -> int:
        """Tokens that the running engine can be fed at once."""
        return int(self._llm.llm_engine.vllm_config.model_config.max_model_len)

    @property
    def _vocabulary(self) -> int:
        return int(self._llm.llm_engine.vllm_config.model_config.get_vocab_size())

    def _ask(self, requests: list[Request], use_cache: bool = True) -> np.ndarray:
        """(2, targets): log-probability and argmax of every target; a row that was lost is computed again."""
        found = engine.ask(self._llm, requests, use_cache)
        lost = [i for i, (logprob_T, _) in enumerate(found) if np.isnan(logprob_T).any()]
        if lost:
            self.redone += len(lost)
            for i, again in zip(lost, engine.ask(self._llm, [requests[i] for i in lost], False), strict=True):
                found[i] = again
        return np.concatenate(found, axis=1, dtype=np.float64)


def engine_settings(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts as settings of vLLM's engine; values are YAML scalars."""
    import yaml

    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(
                f"--vllm-arg {text!r} is not NAME=VALUE: give a setting of vLLM's engine, such as max_model_len=4096"
            )
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            settings[name] = value
    return settings


def check_finite(checkpoint: Checkpoint, logprob_T: np.ndarray) -> None:
    """Raises UserError where a log-probability is NaN, as weights with NaN make it."""
    if np.isnan(logprob_T).any():
        raise UserError(
            f"{checkpoint.name} gives NaN instead of log-probabilities: it is not scored; check its training"
        )


def refuse_float8(stored: dict[str, weights.FileTensor]) -> None:
    """Raises UserError where a weight has eight bits: whether something scales it is not compared with transformers."""
    for tensor in stored.values():
        if tensor.dtype in weights.FLOAT8:
            raise UserError(
                f"{tensor.file}: {printable(tensor.name[:60])} is stored as {tensor.dtype}, which the vLLM backend does not read:"
                " use --backend torch, or convert it to bf16"
            )


def check_tied(checkpoint: Checkpoint, stored: dict[str, weights.FileTensor], proof: VllmProof) -> None:
    """Raises UserError where a file has tensors of their own for what is one parameter: vLLM would drop all but one."""
    for group in proof.tied:
        names = [name for name in group if name in stored]
        for other in names[1:]:
            if not torch.equal(stored[names[0]][...], stored[other][...]):
                raise UserError(
                    f"{checkpoint.name} has an own {other} where its config.json ties it to {names[0]}, and vLLM would drop it:"
                    " use --backend torch"
                )


def file_digest(stored: weights.FileTensor, dtype: str) -> tuple[list[int], float, float]:
    """The digest of a tensor in its file, as the model would hold it."""
    tensor = stored[...]
    return digest(tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor)
