"""What a backend is, and the one place where one is made: for the command line, Ray's workers and lm-eval."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from evalengine import libraries

if TYPE_CHECKING:
    from evalengine.checkpoints import Checkpoint
    from evalengine.encoding import Scores, Sequences

NAMES = ("torch", "vllm")


class Backend(Protocol):
    """What runs a model. It sees token ids, never text."""

    name: str  # one of NAMES
    dtype: str
    notes: list[str]  # what the user should know about how the loaded model runs

    def load(self, checkpoint: Checkpoint) -> None:
        """Makes a checkpoint the one that is scored. Raises UserError."""

    def score(self, sequences: Sequences, progress: Callable[[float], None] | None = None) -> Scores:
        """Scores of the loaded checkpoint. `progress` is called with numbers of sequences finished. Raises UserError."""

    def close(self) -> None:
        """Ends what the backend has started."""


class BackendSpec(NamedTuple):
    """A backend that may be made elsewhere."""

    name: str  # one of NAMES
    dtype: str  # "" for the backend's own default
    settings: dict[str, Any]  # its other arguments

    def make(self) -> Backend:
        """Raises UserError where it cannot run here."""
        quiet_transformers()
        if self.name == "vllm":
            from evalengine.vllm.backend import VllmBackend

            return VllmBackend(dtype=self.dtype or None, **self.settings)
        libraries.load("evalengine.torch_backend")
        from evalengine.torch_backend import TorchBackend

        return TorchBackend(dtype=self.dtype or None, **self.settings)


def quiet_transformers() -> None:
    """Its warnings speak of loading paths that are not used here; errors still come as exceptions."""
    libraries.load("transformers")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
