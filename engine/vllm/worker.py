"""What a vLLM worker gains (`worker_extension_cls`): new weights in place, and the proof that they arrived."""

from __future__ import annotations

from typing import Any

import torch


class ScoringWorker:
    """Mixed into vLLM's worker. Called through `collective_rpc`."""

    model_runner: Any
    vllm_config: Any

    def evalengine_swap(self, path: str) -> None:
        """Reads the weights of the checkpoint directory `path` into the running model.

        vLLM's `reload_weights` does it for layers that own their tensors. On the CPU it leaves the packed copies of tied heads
        and of experts as they were, which would score silently with a mixture of two checkpoints: those are packed again.
        """
        self.model_runner.reload_weights(weights_path=path)
        model = self.model_runner.get_model()
        if self.vllm_config.device_config.device_type == "cpu":
            for module in model.modules():
                pack(module)
        pooler = getattr(model, "pooler", None)
        if pooler is not None:
            pooler.forget()

    def evalengine_tensors(self, names: list[str]) -> dict[str, tuple[list[int], float, float]]:
        """Shape, sum and sum of squares (float64) of those parameters that the model holds under these names."""
        parameters = dict(self.model_runner.get_model().named_parameters())
        return {
            name: digest(parameters[name])
            for name in names
            if name in parameters and parameters[name].numel()
        }


def digest(tensor: torch.Tensor) -> tuple[list[int], float, float]:
    flat = tensor.detach().double()
    return list(tensor.shape), float(flat.sum()), float((flat * flat).sum())


def pack(module: torch.nn.Module) -> None:
    """Makes the packed copies of an embedding, a head or experts again, from the tensors that were reloaded.

    A head tied to the embedding is reloaded as the embedding, and its own packed copy left; experts are laid out for the
    kernel only when they are first loaded.
    """
    from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    method: Any = getattr(module, "quant_method", None)
    if isinstance(method, FusedMoEMethodBase):
        experts = getattr(getattr(method, "moe_kernel", None), "fused_experts", None)
        (experts or method).process_weights_after_loading(module)
    elif method is not None and isinstance(module, VocabParallelEmbedding):
        method.process_weights_after_loading(module)
