"""How fast `target_logprobs` could be at most on an H200: an estimate from shapes, not a measurement.

python -m evalengine.bench.roofline
"""

from __future__ import annotations

import math
from typing import NamedTuple

FLOPS = 790e12  # bfloat16, dense, as large products of random matrices reach it
BYTES = 4.8e12  # a second, by the data sheet
PROCESSORS, CLOCK, EXPONENTIALS = 132, 1.75e9, 16  # exponentials a clock and processor
CHUNK_N, BLOCK_N, BLOCK_V = 1024, 128, 256


class Roofline(NamedTuple):
    """Milliseconds, each as if it were all there is to do."""

    compute: float
    memory: float
    exponentials: float

    @property
    def floor(self) -> float:
        """Everything overlaps but the exponentials, which a program takes after its products."""
        return max(self.compute, self.memory) + self.exponentials

    @property
    def bound(self) -> str:
        return "memory" if self.memory > self.compute else "tensor cores"


def estimate(rows: int, hidden: int, vocab: int, element: int = 2) -> Roofline:
    """For (rows, hidden) states and a (vocab, hidden) head with elements of that many bytes."""
    padded = math.ceil(rows / BLOCK_N) * BLOCK_N
    flops = 2 * padded * hidden * vocab
    chunks, tiles = math.ceil(rows / CHUNK_N), math.ceil(vocab / BLOCK_V)
    moved = element * (chunks * vocab * hidden + rows * hidden) + 2 * 12 * rows * tiles
    exponentials = padded * vocab / (PROCESSORS * CLOCK * EXPONENTIALS)
    return Roofline(1e3 * flops / FLOPS, 1e3 * moved / BYTES, 1e3 * exponentials)


def main() -> None:
    from evalengine.bench.kernels import HEADS

    print("| head | N x D x V, bfloat16 | compute ms | memory ms | exponentials ms | floor ms | bound by |")
    print("|---|---|--:|--:|--:|--:|---|")
    for model, (hidden, vocab, _) in HEADS.items():
        for rows in (64, 4_096):
            x = estimate(rows, hidden, vocab)
            figures = " | ".join(f"{v:.3f}" for v in (x.compute, x.memory, x.exponentials, x.floor))
            print(f"| {model} | {rows:,} x {hidden:,} x {vocab:,} | {figures} | {x.bound} |")


if __name__ == "__main__":
    main()
