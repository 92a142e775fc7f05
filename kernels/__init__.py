"""Kernels: log-probabilities and the training loss, straight from hidden states; attention in a tree of tokens.

Triton on CUDA, machine code of our own or plain PyTorch on the CPU; the calls are the same. Triton is imported on the
first CUDA call.
"""

from evalengine.kernels.emulated_logprobs import EmulatedLogprobs, emulated_logprobs
from evalengine.kernels.head import Head, HeadedRows, TargetLogprobs
from evalengine.kernels.linear_cross_entropy import linear_cross_entropy
from evalengine.kernels.logits_logprobs import logits_logprobs
from evalengine.kernels.target_logprobs import target_logprobs
from evalengine.kernels.token_tree import Tree
from evalengine.kernels.tree_attention import tree_attention

__all__ = [
    "EmulatedLogprobs", "Head", "HeadedRows", "TargetLogprobs", "Tree", "emulated_logprobs", "linear_cross_entropy",
    "logits_logprobs", "target_logprobs", "tree_attention",
]  # fmt: skip
