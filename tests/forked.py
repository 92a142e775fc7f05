"""Training workers that are forked from one process which has imported what they need, and not spawned: that is seconds each.

What they are given, what they do and how they end is the product's own. Tests that kill a whole command start it as its users do.
"""

from __future__ import annotations

import os
from multiprocessing.context import ForkServerContext, ForkServerProcess

IMPORTED = [
    "evalengine.training.workers",
    "safetensors.torch",
    "torch.distributed.checkpoint.state_dict",
    "torch.nn.attention.flex_attention",
]


class Worker(ForkServerProcess):
    """Sees the environment of now, as a spawned process would, and follows the process that it was forked from."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        from evalengine.training import workers

        os.environ.clear()
        os.environ.update(self._environment)
        follow = workers._follow
        workers._follow = lambda parent: follow(os.getppid())
        super().run()


class Forked(ForkServerContext):
    Process = Worker

    def get_context(self, method: str | None = None) -> Forked:
        """Of itself: the place of the module `multiprocessing`."""
        return self


def context() -> Forked:
    found = Forked()
    found.set_forkserver_preload(IMPORTED)
    return found
