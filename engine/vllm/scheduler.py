"""A scheduler whose prefix-cache hits end before the first row that a request must score.

vLLM computes hidden states only for the tokens after a hit. A context that ends on a block's edge, or a sibling that shares
first tokens, would make the hit cover a scored row, and its score would be lost. Here a request that names its first scored
row (`first`) asks the cache as if it ended there. Requests that name none are scheduled as always.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from evalengine.vllm import FIRST


class HitCappedScheduler(Scheduler):
    """vLLM's scheduler, its cache manager asked through `capped`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        manager: Any = self.kv_cache_manager
        lookup = manager.get_computed_blocks

        def capped(request: Any, *args: Any, **kwargs: Any) -> Any:
            first = first_scored_row(request)
            if first is None:
                return lookup(request, *args, **kwargs)
            given = kwargs.get("max_cache_hit_length")  # vLLM >= 0.33
            if given is not None:
                kwargs["max_cache_hit_length"] = min(given, first)
            return lookup(Shortened(request, first), *args, **kwargs)

        manager.get_computed_blocks = capped  # this instance's, not the class's


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
