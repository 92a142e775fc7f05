"""How far two score stores of the same checkpoints and benchmarks are apart: `python -m evalengine.vllm.agreement A B`.

    evalengine score ckpts/* --data bench/ --out scores_torch
    evalengine score ckpts/* --data bench/ --out scores_vllm --backend vllm
    python -m evalengine.vllm.agreement scores_torch scores_vllm

Cost: reading both stores.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evalengine import store
from evalengine.errors import UserError
from evalengine.store.metrics import table_answers


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
    tables = [store.load(path) for path in (a, b)]
    names, others = (table.select(["checkpoint", "benchmark", "item"]).to_pylist() for table in tables)
    if names != others:
        raise UserError(f"{a} and {b} hold different items: score the same checkpoints on the same data")
    cells, cell_I = np.unique([f"{n['checkpoint']}/{n['benchmark']}" for n in names], return_inverse=True)
    differs, picks = np.zeros(len(cells), bool), {}
    for metric in ("acc", "acc_norm"):
        (one, gold_I), (other, _) = (table_answers(table, metric) for table in tables)
        right = [np.bincount(cell_I, found.pick == gold_I) for found in (one, other)]
        differs |= right[0] != right[1]
        picks[metric] = int((one.pick != other.pick).sum())
    one_C, other_C = (table["loglik"].combine_chunks().flatten().to_numpy() for table in tables)
    flags = [table["greedy"].combine_chunks().flatten().to_numpy(zero_copy_only=False) for table in tables]
    largest = float(np.abs(one_C - other_C).max(initial=0.0))
    greedy = int((flags[0] != flags[1]).sum())
    differing = picks["acc"], picks["acc_norm"], greedy, int(differs.sum())
    return Agreement(len(cells), len(names), len(one_C), largest, *differing)


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
