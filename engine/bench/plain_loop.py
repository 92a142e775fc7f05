"""The baseline of `evalengine bench training`: what one would write first, in nanoGPT's manner.

The same Llama-shaped decoder, a module per matrix, norms and rotation spelled out, logits in full and
`F.cross_entropy`; rows of several documents get a boolean mask and positions that restart; zero_grad, forward,
backward, clip, fused AdamW. On a GPU it has what such a loop has there: bfloat16 autocast, TF32 and
`torch.compile` over the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalengine.training.decoder.model import Shape


class Norm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(shape.d_model)), shape.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class PlainBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D, F_, inner = shape.d_model, shape.ffn, shape.heads * shape.head_dim
        self.heads, self.head_dim = shape.heads, shape.head_dim
        self.norm1, self.norm2 = Norm(shape), Norm(shape)
        self.q, self.k, self.v = (nn.Linear(D, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, D, bias=False)
        self.gate, self.up = (nn.Linear(D, F_, bias=False) for _ in range(2))
        self.down = nn.Linear(F_, D, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        B, T, _ = x.shape
        h = self.norm1(x)
        q, k, v = (
            f(h).view(B, T, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, -1))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


class Plain(nn.Module):
    """`forward` gives (B, T, V) logits."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(shape.vocab, shape.d_model), Norm(shape)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.layers))
        self.head = nn.Linear(shape.d_model, shape.vocab, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight
        exponent = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angle = torch.arange(shape.context)[:, None] * (shape.rope_theta**-exponent)
        self.register_buffer("cos", torch.cat((angle, angle), -1).cos())
        self.register_buffer("sin", torch.cat((angle, angle), -1).sin())
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, 0.0, 0.02)

    def forward(self, token: Tensor, position: Tensor | None = None) -> Tensor:
        """`position` restarts with each document; None: one document a row."""
        x, T = self.embedding(token), token.shape[1]
        cos, sin, mask = self.cos[:T], self.sin[:T], None
        if position is not None:
            cos, sin = self.cos[position].unsqueeze(1), self.sin[position].unsqueeze(1)
            document = (position == 0).cumsum(1)
            mask = (document[:, :, None] == document[:, None, :]).tril().unsqueeze(1)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.head(self.norm(x))


def run(shape: Shape, batches: Any, device: str, report: Callable[[float], None]) -> None:
    """Trains over `batches`; `report` is called with the loss of every step."""
    gpu = device.startswith("cuda")
    if gpu:
        torch.set_float32_matmul_precision("high")
    model: Any = Plain(shape).to(device)
    optim = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if gpu else model
    for step in range(batches.steps):
        batch = batches.batch(step)
        x, y = (torch.from_numpy(a).to(device) for a in (batch.token_BT, batch.target_BT))
        whole = bool((batch.position_BT[:, 1:] > 0).all())
        position = None if whole else torch.from_numpy(batch.position_BT).to(device)
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=gpu):
            loss = F.cross_entropy(forward(x, position).view(-1, shape.vocab), y.reshape(-1))
        optim.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        report(float(loss.detach()))  # on a GPU this waits for the step
