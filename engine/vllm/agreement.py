"""How far two score stores of the same checkpoints and benchmarks are apart: `python -m evalengine.vllm.agreement A B`.

    evalengine score ckpts/* --data bench/ --out scores_torch
    evalengine score ckpts/* --data bench/ --out scores_vllm --backend vllm
    python -m evalengine.vllm.agreement scores_torch scores_vllm

Cost: reading both stores.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evalengine import store
from evalengine.errors import UserError


class Agreement(NamedTuple):
    """Of two stores: the items that both hold, and how their scores differ."""

    cells: int  # (checkpoint, benchmark) pairs
    items: int
    choices: int
    largest: float  # difference of a choice's log-likelihood, in nats
    picks: int  # items whose best choice differs, by log-likelihood
    picks_norm: int  # the same by log-likelihood per character
    greedy: int  # choices whose argmax flag differs
    accuracies: int  # cells whose acc or acc_norm differs


def agreement(a: Path, b: Path) -> Agreement:
    """Compares two stores item by item. Raises UserError if they do not hold the same items."""
    tables = [store.load(path).to_pylist() for path in (a, b)]
    key = ("checkpoint", "benchmark", "item")
    if [[row[k] for k in key] for row in tables[0]] != [[row[k] for k in key] for row in tables[1]]:
        raise UserError(f"{a} and {b} hold different items: score the same checkpoints on the same data")
    right: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros((2, 2), np.int64))
    choices = picks = picks_norm = greedy = 0
    largest = 0.0
    for rows in zip(*tables, strict=True):
        loglik = np.array([row["loglik"] for row in rows], np.float32)
        chars = np.maximum(np.array(rows[0]["chars"]), 1)
        best, best_norm = loglik.argmax(1), (loglik / chars).argmax(1)
        largest = max(largest, float(np.abs(loglik[0] - loglik[1]).max()))
        choices += len(chars)
        picks += int(best[0] != best[1])
        picks_norm += int(best_norm[0] != best_norm[1])
        greedy += int((np.array(rows[0]["greedy"]) != np.array(rows[1]["greedy"])).sum())
        right[rows[0]["checkpoint"], rows[0]["benchmark"]] += np.stack([best, best_norm]) == rows[0]["gold"]
    accuracies = sum(bool((counts[:, 0] != counts[:, 1]).any()) for counts in right.values())
    return Agreement(len(right), len(tables[0]), choices, largest, picks, picks_norm, greedy, accuracies)


if __name__ == "__main__":
    try:
        found = agreement(Path(sys.argv[1]), Path(sys.argv[2]))
    except IndexError:
        sys.exit("usage: python -m evalengine.vllm.agreement STORE STORE")
    except UserError as error:
        sys.exit(f"evalengine: {error}")
    print(
        f"{found.items:,} items, {found.choices:,} choices, {found.cells:,} accuracies of each kind: largest difference"
        f" {found.largest:.1e}, {found.picks} picks differ ({found.picks_norm} per character), {found.greedy} argmax flags,"
        f" {found.accuracies} accuracies"
    )
