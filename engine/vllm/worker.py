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
                if needs_packing(module):
                    module.quant_method.process_weights_after_loading(module)
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


def needs_packing(module: torch.nn.Module) -> bool:
    from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    method = getattr(module, "quant_method", None)
    return isinstance(method, FusedMoEMethodBase) or (
        method is not None and isinstance(module, VocabParallelEmbedding)
    )
