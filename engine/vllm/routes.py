"""Three ways to get scores out of a vLLM engine, best first. Each takes requests and returns (logprob, greedy) per target.

fused                     the scoring variant with its pooler (plugin.py, pooler.py): the head runs on scored rows alone
prompt_logprob_token_ids  vLLM's own, where its model runner has it: the head runs on scored rows, but gives no argmax
prompt_logprobs           vLLM's own, everywhere: the head runs on every token that is computed

The last two generate one token, whose log-probabilities score the targets of the last row; the rows before it come from the
prompt. All three read the prefix cache, under the scheduler that keeps scored rows out of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from evalengine.vllm import FIRST, TASK
from evalengine.vllm.requests import Request

FUSED, TOKEN_IDS, PROMPT_LOGPROBS = "fused scorer", "prompt_logprob_token_ids", "prompt_logprobs"


class Targets(NamedTuple):
    """Of one request: log-probability (natural) of each target, NaN where its row was lost, and whether it is the argmax."""

    logprob_T: np.ndarray
    greedy_T: np.ndarray


def available(llm: Any, route: str) -> str:
    """`route`, or prompt_logprobs where this engine's model runner cannot score given token ids."""
    from vllm import SamplingParams

    if route != TOKEN_IDS:
        return route
    kind = getattr(SamplingParams, "__annotations__", {}).get("prompt_logprob_token_ids", "")
    rows_of_their_own = "ndarray" in str(kind)  # vLLM 0.31 takes one list of ids for all rows
    second_runner = getattr(llm.llm_engine.vllm_config, "use_v2_model_runner", False)
    return route if rows_of_their_own and second_runner else PROMPT_LOGPROBS


def run(route: str, llm: Any, requests: list[Request], use_cache: bool) -> list[Targets]:
    if route == FUSED:
        return fused(llm, requests, use_cache)
    return generated(llm, requests, use_cache, token_ids=route == TOKEN_IDS)


def fused(llm: Any, requests: list[Request], use_cache: bool = True) -> list[Targets]:
    from vllm import PoolingParams

    params = [
        PoolingParams(
            task=TASK,
            skip_reading_prefix_cache=not use_cache,
            extra_kwargs={"rows": r.row_T.tobytes(), "tokens": r.token_T.tobytes(), FIRST: r.first},
        )
        for r in requests
    ]
    outputs = llm.encode(prompts(requests), pooling_params=params, pooling_task=TASK, use_tqdm=False)
    out = []
    for output in outputs:
        logprob_T, greedy_T = output.outputs.data.numpy()
        out.append(Targets(logprob_T, greedy_T > 0.5))
    return out


def prompts(requests: list[Request]) -> list[Any]:
    return [{"prompt_token_ids": r.tokens.tolist()} for r in requests]


def generated(
    llm: Any, requests: list[Request], use_cache: bool = True, token_ids: bool = False
) -> list[Targets]:
    """Through one generated token: `token_ids` scores the prompt's rows by prompt_logprob_token_ids, else by prompt_logprobs."""
    from vllm import SamplingParams

    params = []
    for r in requests:
        last = r.token_T[r.row_T == len(r.tokens) - 1].tolist()
        inner = len(last) < len(r.row_T)
        kwargs: dict[str, Any] = {}
        if inner and token_ids:
            kwargs = {"prompt_logprob_token_ids": id_rows(r), "prompt_logprob_start": r.first}
        elif inner:
            kwargs = {"prompt_logprobs": 0, "flat_logprobs": True}
        params.append(
            SamplingParams(
                temperature=0.0,
                max_tokens=1,
                detokenize=False,
                logprob_token_ids=last or None,
                skip_reading_prefix_cache=not use_cache,
                extra_args={FIRST: r.first},
                **kwargs,
            )
        )
    outputs = llm.generate(prompts(requests), params, use_tqdm=False)
    return [read(r, output, token_ids) for r, output in zip(requests, outputs, strict=True)]


def id_rows(r: Request) -> np.ndarray:
    """(rows, ids): the targets of each row from the first scored one to the last but one, padded with -1."""
    rows = range(r.first, len(r.tokens) - 1)
    lists = [r.token_T[r.row_T == row] for row in rows]
    out = np.full((len(lists), max(1, *(len(x) for x in lists))), -1, np.int32)
    for i, ids in enumerate(lists):
        out[i, : len(ids)] = ids
    return out


def read(r: Request, output: Any, token_ids: bool) -> Targets:
    logprob_T = np.full(len(r.row_T), np.nan)
    greedy_T = np.zeros(len(r.row_T), bool)
    completion = output.outputs[0]
    lost = output.num_cached_tokens or 0  # rows that came from the cache were not computed, and hold anything
    for t, (row, token) in enumerate(zip(r.row_T.tolist(), r.token_T.tolist(), strict=True)):
        if row == len(r.tokens) - 1:
            logprob_T[t] = completion.logprobs[0][token].logprob
            greedy_T[t] = completion.token_ids[0] == token
        elif row < lost:
            continue
        elif token_ids:
            scores = getattr(output, "prompt_token_id_logprobs", None)
            if scores is not None:
                at = int(np.flatnonzero(r.token_T[r.row_T == row] == token)[0])
                logprob_T[t] = scores[row - r.first][at]
                # above a half it is the argmax; below, this route cannot tell
                greedy_T[t] = logprob_T[t] > np.log(0.5)
        else:
            entry = output.prompt_logprobs[row + 1].get(token) if output.prompt_logprobs else None
            if entry is not None:
                logprob_T[t] = entry.logprob
                greedy_T[t] = entry.rank == 1
    return Targets(logprob_T, greedy_T)
