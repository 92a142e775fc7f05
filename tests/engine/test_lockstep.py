"""Several models in lockstep: each one's own scores are those that it gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from test_torch_backend import shared_sequences

import tiny_models
from evalengine.checkpoints.resolve import discover
from evalengine.model.lockstep import Lockstep, Shift, Wanted
from evalengine.model.torch_backend import TorchBackend


def test_own_scores_are_the_same_bytes_where_the_models_run_in_different_ways(tmp_path: Path) -> None:
    """One model has failed to run packed: the shift runs plainly, and the others' own scores are packed as alone."""

    def backend() -> TorchBackend:
        return TorchBackend(device="cpu", dtype="float32", batch_tokens=200)

    checkpoints = discover([tiny_models.save(tmp_path / str(seed), seed=seed) for seed in range(4)])
    sequences = shared_sequences(300)
    lockstep = Lockstep([backend() for _ in checkpoints])
    lockstep.load(checkpoints, 300)
    lockstep.loaded[3].fail("it has no such kernel")
    wanted = Wanted((0, 1, 2, 3), (Shift(2, 1, 0, (1.0,)), Shift(0, 3, 2, (1.0,))))
    found = lockstep.score(wanted, sequences)
    packed = lockstep.score(Wanted((), wanted.shifts[:1]), sequences)[0]
    for k, checkpoint in enumerate(checkpoints):
        alone = backend()
        alone.load(checkpoint)
        if k == 3:
            alone.fail("it has no such kernel")
        expected = alone.score(sequences)
        np.testing.assert_array_equal(found[k].loglik, expected.loglik)
        np.testing.assert_array_equal(found[k].greedy, expected.greedy)
    np.testing.assert_allclose(found[4].loglik, packed.loglik, atol=5e-4, rtol=1e-5)
