"""The one place where a backend is made: for the command line, for Ray's workers and for lm-evaluation-harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from evalengine.types import Backend

NAMES = ("torch", "vllm")


class BackendSpec(NamedTuple):
    """A backend that may be made elsewhere. It has what a store's metadata says of a backend: name and dtype."""

    name: str  # one of NAMES
    dtype: str  # "" for the backend's own default
    settings: dict[str, Any]  # its other arguments

    def make(self) -> Backend:
        """Raises UserError where it cannot run here."""
        quiet_transformers()
        if self.name == "vllm":
            from evalengine.vllm.backend import VllmBackend

            return VllmBackend(dtype=self.dtype or None, **self.settings)
        from evalengine.torch_backend import TorchBackend

        return TorchBackend(dtype=self.dtype or None, **self.settings)


def quiet_transformers() -> None:
    """Its warnings speak of loading paths that are not used here; errors still come as exceptions."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
