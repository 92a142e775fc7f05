"""The decoder that the trainer trains: Llama's shape, in one file.

RMSNorm before each block, rotary positions, causal attention kept inside documents, gated feed-forward, tied
or untied embeddings, a head size of its own (the paper's 240M has 768 dimensions but 8 heads of 256). Query,
key and value are one matrix, gate and up another: fewer, larger products; `export` splits them into Hugging
Face's names. The forward pass returns the summed loss, so that data parallelism sees one module that owns
every parameter.

Dims: B rows, T positions, N = B*T, D hidden, H heads, E head size, F feed-forward, V vocabulary, L layers.
Cost of one training token: 6 * (matrices) + 12 * L * H * E * (mean attended length) FLOPs, see
`flops_per_token`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evalengine.kernels import linear_cross_entropy
from evalengine.training.data.rows import IGNORE, Pairs
from evalengine.training.decoder.attention import DocumentMask, attend
from evalengine.training.decoder.preference_loss import preference_loss


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder; every field appears under the same name in a study file's `scales`."""

    d_model: int
    layers: int
    heads: int
    head_dim: int
    ffn: int  # width of the gated feed-forward
    vocab: int
    context: int = 2048
    tied: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def matrix_params(self) -> int:
        """Parameters that multiply every token: attention, feed-forward and the head."""
        per_layer = 4 * self.d_model * self.heads * self.head_dim + 3 * self.d_model * self.ffn
        return self.layers * per_layer + self.vocab * self.d_model

    @property
    def params(self) -> int:
        norms = (2 * self.layers + 1) * self.d_model
        return self.matrix_params + norms + (0 if self.tied else self.vocab * self.d_model)

    def flops_per_token(self, attended: float | None = None) -> float:
        """Training FLOPs (forward and backward) of a token that attends to `attended` others (default: half a window)."""
        attended = self.context / 2 if attended is None else attended
        return 6.0 * self.matrix_params + 12.0 * self.layers * self.heads * self.head_dim * attended


class Rotation(NamedTuple):
    """Rotary angles of every position of a batch, shaped to broadcast over heads."""

    cos_BT1E: Tensor
    sin_BT1E: Tensor  # the first half negated, so that rotating is one product with the swapped halves


def rotation(position_BT: Tensor, shape: Shape, dtype: torch.dtype) -> Rotation:
    """The angles of positions below the context, or below T where rows are longer."""
    length = max(shape.context, position_BT.shape[1])
    cos_TE, sin_TE = _angles(length, shape.head_dim, shape.rope_theta, position_BT.device, dtype)
    return Rotation(cos_TE[position_BT].unsqueeze(2), sin_TE[position_BT].unsqueeze(2))


@lru_cache(maxsize=8)
def _angles(
    length: int, head_dim: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """In float32, rounded once at the end. Pairs are (i, i + E/2), as in Hugging Face's Llama."""
    exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    angle_TE = torch.arange(length, device=device)[:, None] * (1.0 / theta**exponent)
    cos, sin = angle_TE.cos(), angle_TE.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x_BTHE: Tensor, turn: Rotation) -> Tensor:
    swapped = torch.roll(x_BTHE, x_BTHE.shape[-1] // 2, -1)
    return x_BTHE * turn.cos_BT1E + swapped * turn.sin_BT1E


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised input and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        inner = shape.heads * shape.head_dim
        self.heads, self.head_dim = shape.heads, shape.head_dim
        self.attention_norm = RMSNorm(shape.d_model, shape.norm_eps)
        self.qkv = nn.Linear(shape.d_model, 3 * inner, bias=False)
        self.attention_out = nn.Linear(inner, shape.d_model, bias=False)
        self.ffn_norm = RMSNorm(shape.d_model, shape.norm_eps)
        self.gate_up = nn.Linear(shape.d_model, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.d_model, bias=False)

    def forward(self, x_BTD: Tensor, turn: Rotation, mask: DocumentMask) -> Tensor:
        B, T, _ = x_BTD.shape
        qkv = self.qkv(self.attention_norm(x_BTD)).view(B, T, 3 * self.heads, self.head_dim)
        qk, v = qkv.split((2 * self.heads, self.heads), 2)
        q, k = rotate(qk, turn).split(self.heads, 2)
        mixed = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        x_BTD = x_BTD + self.attention_out(mixed.transpose(1, 2).reshape(B, T, -1))
        gate, up = self.gate_up(self.ffn_norm(x_BTD)).chunk(2, -1)
        return x_BTD + self.down(F.silu(gate) * up)


def product_dtype(x: Tensor) -> torch.dtype:
    """Of matrix products with x: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class Decoder(nn.Module):
    """A Llama-shaped language model. `forward` gives a summed loss, `hidden` and `logits` the rest."""

    def __init__(self, shape: Shape, *, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.shape, self.checkpoint_activations = shape, checkpoint_activations
        self.embedding = nn.Embedding(shape.vocab, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.d_model, shape.norm_eps)
        self.head = nn.Linear(shape.d_model, shape.vocab, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight

    def initialise(self, generator: torch.Generator) -> Decoder:
        """Normal(0, 0.02); the two matrices that write to the stream are divided by sqrt(2 L), as in GPT-2."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                writes = name.endswith(("attention_out.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * self.shape.layers) if writes else 0.02
                with torch.no_grad():
                    weight.normal_(0.0, std, generator=generator)
        return self

    def layers(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def hidden(self, token_BT: Tensor, position_BT: Tensor, mask: DocumentMask) -> Tensor:
        """Normalised last hidden states, (B, T, D)."""
        x_BTD = self.embedding(token_BT)
        turn = rotation(position_BT, self.shape, product_dtype(x_BTD))
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, turn, mask, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, turn, mask)
        return self.norm(x_BTD)

    def logits(self, token_BT: Tensor) -> Tensor:
        """(B, T, V) logits of whole rows, one document each: for tests and inspection, never for training."""
        B, T = token_BT.shape
        position_BT = torch.arange(T, device=token_BT.device).expand(B, T)
        return self.head(self.hidden(token_BT, position_BT, DocumentMask()))

    def forward(
        self,
        token_BT: Tensor,
        position_BT: Tensor,
        target_BT: Tensor,
        z_loss: float = 0.0,
        whole: bool | None = None,
        pairs: Pairs | None = None,
    ) -> Tensor:
        """The loss summed over targets other than `IGNORE`, a float32 scalar; with `pairs` what `preference_loss` returns.

        `z_loss` times the squared log-sum-exp of each row's logits is added. The (N, V) logits are never stored: at a
        vocabulary of 100,864 they would be larger than the model.

        token_BT, target_BT: int64; position_BT: int64, restarting at 0 with each document. Rows pack
        documents: a token attends to the earlier tokens of its own document only; `whole`: whether each row is
        one (None: looks). Targets may stay on the CPU, where the loss sees which of them to leave out.
        """
        h_BTD = self.hidden(token_BT, position_BT, DocumentMask.from_positions(position_BT, whole))
        dtype = product_dtype(h_BTD)  # autocast knows nothing of the loss
        h_ND, w_VD = h_BTD.reshape(-1, h_BTD.shape[-1]).to(dtype), self.head.weight.to(dtype)
        if pairs is not None:
            return preference_loss(h_ND, w_VD, target_BT.reshape(-1), pairs)
        return linear_cross_entropy(
            h_ND, w_VD, target_BT.reshape(-1), ignore_index=IGNORE, reduction="sum", z_loss=z_loss
        )
