"""A scheduler whose prefix-cache hits end before the first row that a request must score.

vLLM computes hidden states only for the tokens after a hit. A context that ends on a block's edge, or a sibling that shares
first tokens, would make the hit cover a scored row, and its score would be lost. Here a request that names its first scored
row (`first`) asks the cache as if it ended there. Requests that name none are scheduled as always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from evalengine.vllm import FIRST

LOOKUPS = ("get_computed_blocks", "get_computed_blocks_for_connector")  # the second falls back on the first


class HitCappedScheduler(Scheduler):
    """vLLM's scheduler, its cache manager asked through `capped`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # vLLM before 0.29 keeps a place for a sampled token: in chunks, a prompt that fills the window would never end
        self.max_model_len += 1
        manager: Any = self.kv_cache_manager
        for name in LOOKUPS:
            if hasattr(manager, name):
                setattr(manager, name, capped(getattr(manager, name)))  # this instance's, not the class's


def capped(lookup: Callable[..., Any]) -> Callable[..., Any]:
    """A cache lookup that finds no more than the tokens before a request's first scored row."""

    def look(request: Any, max_cache_hit_length: int | None = None) -> Any:
        first = first_scored_row(request)
        if first is not None:
            request = Shortened(request, first)
        # vLLM before 0.33 does not take a limit, and after it None means to the last token
        if max_cache_hit_length is None:
            return lookup(request)
        limit = max_cache_hit_length if first is None else min(max_cache_hit_length, first)
        return lookup(request, limit)

    return look


class Shortened:
    """A request as the cache lookup sees it: at most `first` of its tokens may come from the cache."""

    def __init__(self, request: Any, first: int) -> None:
        self._request = request
        self.num_tokens = min(first + 1, request.num_tokens)  # the lookup leaves one token to compute

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def first_scored_row(request: Any) -> int | None:
    pooling, sampling = request.pooling_params, request.sampling_params
    extra = pooling.extra_kwargs if pooling is not None else getattr(sampling, "extra_args", None)
    return None if not extra else extra.get(FIRST)
