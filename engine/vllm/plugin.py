"""The plug-in that every vLLM process loads (entry point group `vllm.general_plugins`).

It does nothing unless EVALENGINE_VLLM names an architecture: then that is registered anew, as a scoring variant made from the
class that vLLM has registered for it. The variant keeps its name, so that vLLM's own special cases for an architecture
still apply, and keeps its LM head, which vLLM's own pooling adapters drop.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

SWITCH = "EVALENGINE_VLLM"  # the architecture to register
_originals: dict[str, Any] = {}


def register() -> None:
    """Registers the scoring variant that EVALENGINE_VLLM asks for. May be called any number of times."""
    architecture = os.environ.get(SWITCH)
    if not architecture or architecture in _originals:
        return
    from vllm import ModelRegistry

    registered = ModelRegistry.models[architecture]
    ModelRegistry.register_model(architecture, scoring_variant(registered.load_model_cls()))
    _originals[architecture] = registered


def restore() -> None:
    """Leaves vLLM's registry as it was found, for engines that others start in this process."""
    if _originals:
        from vllm import ModelRegistry

        ModelRegistry.models.update(_originals)
        _originals.clear()


def scoring_variant(causal: type[nn.Module]) -> type[nn.Module]:
    """A pooling model that is the causal model, with a pooler that scores targets."""
    from vllm.model_executor.models import VllmModelForPooling

    from evalengine.vllm.pooler import TargetPooler

    class Scoring(causal, VllmModelForPooling):  # type: ignore[valid-type, misc]
        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
            use_trained_activation(self)
            self.pooler = TargetPooler(self)

    Scoring.__name__ = causal.__name__
    Scoring.__qualname__ = causal.__qualname__
    return Scoring


def use_trained_activation(model: nn.Module) -> None:
    """Gives Bloom the activation it was trained with.

    That is the tanh approximation of GELU, which transformers computes; vLLM's Bloom computes the exact one, which moves
    a choice's score by about 1e-3.
    """
    from torch import nn

    for module in model.modules():
        own = type(getattr(module, "gelu_impl", None)).__name__
        if type(module).__name__ == "BloomMLP" and own == "GELU":
            module.gelu_impl = nn.GELU(approximate="tanh")
