"""lm-evaluation-harness on this engine: any of its log-likelihood tasks, with its own prompts and metrics.

lm-eval 0.4.13 has no entry point for models: `evalengine lm-eval` is its command line with this one registered.

Cost: tokenising in batches, and the engine's own; equal requests are scored once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM

from evalengine import console
from evalengine.backends import DTYPES, NAMES, BackendSpec
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError
from evalengine.plan import plans
from evalengine.plan.encoding import Encoder, merge
from evalengine.plan.tokenizer import load_tokenizer

NAME = "evalengine"  # of the model, to lm-eval


class EvalengineLM(TemplateLM):
    """lm-eval's model interface over a backend of this engine.

    `pretrained` is a checkpoint directory; `backend` torch or vllm; `device`, `dtype`, `batch_tokens` and `compile` as for
    `evalengine score`. lm-eval's batch sizes are ignored: batches are packed by tokens.
    """

    def __init__(
        self,
        pretrained: str = "",
        backend: str = "torch",
        device: str | None = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
        compile: str = "auto",
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not pretrained:
            raise UserError("--model_args names no checkpoint: add pretrained=DIR")
        checkpoint = discover([Path(pretrained)])[0]
        if backend not in NAMES or (backend == "torch" and settings):
            wrong = f"backend={backend}" if backend not in NAMES else next(iter(settings))
            raise UserError(
                f"--model_args has no {wrong}: backend is torch or vllm, and vllm alone takes settings of its engine"
            )
        dtype = None if dtype == "auto" else dtype
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"--model_args has no dtype={dtype}: give {', '.join(DTYPES)}, or leave it out")
        if batch_tokens is not None and (not isinstance(batch_tokens, int) or batch_tokens < 1):
            raise UserError(
                f"batch_tokens of --model_args must be a number of at least 1, not {batch_tokens}"
            )
        if backend == "torch":
            import torch

            # lm-eval's command says cuda:0 where the user says nothing; its own models then take the CPU, too
            exists = device != "cuda:0" or torch.cuda.is_available()
            settings |= {"device": device if exists else None, "compile": compile}
        settings |= {"batch_tokens": batch_tokens, "allow_pickle": allow_pickle}
        settings["trust_remote_code"] = trust_remote_code
        self.engine = BackendSpec(backend, dtype or "", settings).make()
        self.tokenizer: Any = load_tokenizer(checkpoint, trust_remote_code)
        self.encoder = Encoder(self.tokenizer, plans.window(checkpoint, trust_remote_code))
        for note in self.encoder.notes:
            console.warn(f"{checkpoint.name}: {note}")
        self.engine.load(checkpoint)
        self._name = str(checkpoint.path)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.encoder.texts([string], special=add_special_tokens)[0]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        ends = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **ends))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether every token was the argmax) of each request's continuation after its context."""
        pairs = [request.args for request in requests]
        results = self._score(self.encoder.pairs(pairs))
        for pair, result in zip(pairs, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text after one BOS, in windows that together predict every token once.

        lm-eval's own model puts a BOS before the one that the tokenizer adds, and predicts that; this one has a single BOS.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        texts = [request.args[0] for request in requests]
        prefix = self.encoder.required_prefix()
        windows, owner = [], []
        for i, ids in enumerate(self.encoder.texts(texts, special=False)):
            text = ids[1:] if ids[:1] == [prefix] else ids  # a text may begin with its BOS
            for pair in get_rolling_token_windows(text, prefix, self.encoder.window, 1):
                context, predicted = make_disjoint_window(pair)
                windows.append(([*context, *predicted], len(context)))
                owner.append(i)
        totals = [0.0] * len(texts)
        for i, (loglik, _) in zip(owner, self._score(windows), strict=True):
            totals[i] += loglik
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise UserError(
            "evalengine scores given answers and does not generate text: run this task with --model hf or vllm"
        )

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._score(
            [([*context, *continuation], len(context)) for _, context, continuation in requests]
        )

    def _score(self, encoded: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        window = self.encoder.window
        longest = max((len(ids) - start for ids, start in encoded), default=0)
        if longest > window:  # lm-eval's own model stops here, too: the score would be of its end alone
            raise UserError(
                f"a continuation of {longest} tokens is longer than the model's window of {window}: leave the task out"
            )
        distinct = merge(encoded, window)
        if cut := int(distinct.truncated_P.sum()):
            console.warn(
                f"{cut} requests are longer than the model's window of {window} tokens: cut on the left"
            )
        scores = self.engine.score(distinct.sequences)
        if not np.isfinite(scores.loglik).all():  # lm-eval would take the first NaN for the model's answer
            raise UserError(
                f"{self._name} gives NaN or infinite scores: check its weights, or add dtype=float32 to --model_args"
            )
        loglik, greedy = scores.loglik[distinct.sequence_P], scores.greedy[distinct.sequence_P]
        return [(float(a), bool(b)) for a, b in zip(loglik, greedy, strict=True)]


def register() -> None:
    """Registers the model with the lm-eval of this process."""
    import lm_eval.models  # noqa: F401  (registers lm-eval's own, which it does only while its registry is empty)
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target="evalengine.lm_eval.model:EvalengineLM")
