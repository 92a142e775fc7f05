"""What a backend is, what runs groups of checkpoints on it, and the one place where both are made: for the command line, Ray's
workers and lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from evalengine import libraries
from evalengine.resume import Named

if TYPE_CHECKING:
    from evalengine.checkpoints import Checkpoint
    from evalengine.groups import Wanted
    from evalengine.plan.encoding import OnProgress, Scores, Sequences

NAMES = ("torch", "vllm")
DTYPES = ("float32", "bfloat16", "float16")  # in which a model may run


class Backend(Protocol):
    """What runs a model. It sees token ids, never text."""

    name: str  # one of NAMES
    dtype: str
    notes: list[str]  # what the user should know about how the loaded model runs

    def load(self, checkpoint: Checkpoint) -> None:
        """Makes a checkpoint the one that is scored. Raises UserError."""

    def score(self, sequences: Sequences, progress: OnProgress | None = None) -> Scores:
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
        libraries.load("evalengine.model.torch_backend")
        from evalengine.model.torch_backend import TorchBackend

        return TorchBackend(dtype=self.dtype or None, **self.settings)


class Models(Named, Protocol):
    """What runs a group: `Alone`, or lockstep.Lockstep of several models."""

    @property
    def notes(self) -> list[str]: ...

    def load(self, checkpoints: Sequence[Checkpoint], vocabulary: int) -> None: ...

    def score(
        self, wanted: Wanted, sequences: Sequences, progress: OnProgress | None = None
    ) -> list[Scores]: ...

    def close(self) -> None: ...


class Alone:
    """A backend as what runs groups of one checkpoint."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.dtype, self._backend = backend.name, backend.dtype, backend

    @property
    def notes(self) -> list[str]:
        return self._backend.notes

    def load(self, checkpoints: Sequence[Checkpoint], vocabulary: int) -> None:
        self._backend.load(*checkpoints)

    def score(self, wanted: Wanted, sequences: Sequences, progress: OnProgress | None = None) -> list[Scores]:
        return [self._backend.score(sequences, progress)]

    def close(self) -> None:
        self._backend.close()


def models_for(spec: BackendSpec, count: int) -> Models:
    """What runs groups of at most `count` checkpoints. Raises UserError where the backend cannot run here."""
    made: Any = [spec.make() for _ in range(count)]
    if count == 1:
        return Alone(*made)
    from evalengine.model.lockstep import Lockstep

    return Lockstep(made)


def quiet_transformers() -> None:
    """Its warnings speak of loading paths that are not used here; errors still come as exceptions."""
    libraries.load("transformers")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
