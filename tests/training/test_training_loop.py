"""The optimiser loop: exact resume, data parallelism, the schedule, and what stops it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evalengine.errors import UserError
from evalengine.training.data.rows import IGNORE, TrainingBatch
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.fitting import loop, state
from evalengine.training.fitting.loop import fit, learning_rate
from evalengine.training.fitting.state import Place
from evalengine.training.study import Pretrain

SHAPE = Shape(d_model=32, layers=2, heads=1, head_dim=32, ffn=64, vocab=300, context=32)
SETTINGS = Pretrain(tokens=0, lr=5e-3, warmup=0.2)


class Synthetic:
    """Batches as a function of the step, with two documents a row and some targets ignored."""

    def __init__(self, steps: int, rows: int = 4) -> None:
        self.steps, self.rows = steps, rows

    def batch(self, step: int) -> TrainingBatch:
        rng = np.random.default_rng(step)
        token = rng.integers(0, 20, (self.rows, 33))
        position = np.tile(np.concatenate([np.arange(20), np.arange(12)]), (self.rows, 1))
        target = token[:, 1:].copy()
        target[0, :7] = IGNORE
        return TrainingBatch(token[:, :-1], position, target, f"rows of step {step}")


def model() -> Decoder:
    return Decoder(SHAPE).initialise(torch.Generator().manual_seed(2))


def losses(log: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


def test_the_schedule_is_warm_up_then_half_a_cosine():
    settings = Pretrain(tokens=0, lr=2.0, warmup=0.1, min_lr=0.1)
    rates = [learning_rate(step, 110, settings) for step in range(110)]
    assert rates[:11] == pytest.approx([2.0 * (k + 1) / 11 for k in range(11)])
    cosine = [2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 99)) / 2) for k in range(99)]
    assert rates[11:] == pytest.approx(cosine)


def test_steps_follow_a_plain_loop_in_float64(tmp_path: Path):
    """Against AdamW and clipping written out by hand on torch's own cross-entropy."""
    ours, reference = model().double(), model().double()
    fit(ours, Synthetic(6), SETTINGS, Place(log=tmp_path / "log"))
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in reference.named_parameters()}
    expected = []
    for step in range(6):
        batch = Synthetic(6).batch(step)
        mask = loop_mask(batch)
        h = reference.hidden(torch.from_numpy(batch.token_BT), torch.from_numpy(batch.position_BT), mask)
        loss = torch.nn.functional.cross_entropy(
            reference.head(h).flatten(0, 1), torch.from_numpy(batch.target_BT).flatten(), ignore_index=IGNORE
        )
        expected.append(float(loss.detach()))
        grads = dict(zip(moments, torch.autograd.grad(loss, list(reference.parameters())), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        lr = learning_rate(step, 6, SETTINGS)
        with torch.no_grad():
            for name, weight in reference.named_parameters():
                g = grads[name] * min(1.0, 1.0 / (norm + 1e-6))
                m, v = moments[name]
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.95).addcmul_(g, g, value=0.05)
                weight.mul_(1 - lr * (0.1 if weight.ndim == 2 else 0.0))
                weight -= lr * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
    assert losses(tmp_path / "log") == pytest.approx(expected, rel=1e-6)


def loop_mask(batch: TrainingBatch):
    from evalengine.training.decoder.attention import DocumentMask

    return DocumentMask.from_positions(torch.from_numpy(batch.position_BT))


def test_micro_batches_follow_the_same_curve(tmp_path: Path):
    for micro in (0, 1, 3):
        fit(model(), Synthetic(8), replace(SETTINGS, micro_rows=micro), Place(log=tmp_path / f"{micro}"))
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "0"), rel=1e-5)
    assert losses(tmp_path / "3") == pytest.approx(losses(tmp_path / "0"), rel=1e-5)


class Stop(Exception):
    pass


def test_a_run_stopped_anywhere_goes_on_with_the_same_bits(tmp_path: Path):
    whole = model()
    fit(whole, Synthetic(12), SETTINGS, Place(log=tmp_path / "whole"))
    place = Place(state=tmp_path / "state.pt", log=tmp_path / "log", fingerprint="f", save_every_s=0)

    def stop_at(step: int):
        def report(done: loop.Step) -> None:
            if done.step == step:
                raise Stop

        return report

    for step in (1, 5, 9):  # the state of the step before is what is on disk
        with pytest.raises(Stop):
            fit(model(), Synthetic(12), SETTINGS, place, stop_at(step))
    resumed = model()
    fit(resumed, Synthetic(12), SETTINGS, place)
    assert losses(tmp_path / "log") == losses(tmp_path / "whole")
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_state_of_other_settings_is_refused(tmp_path: Path):
    place = Place(state=tmp_path / "run.pt", fingerprint="one", save_every_s=0)
    fit(model(), Synthetic(3), SETTINGS, place)
    with pytest.raises(UserError, match=r"run\.pt belongs to other settings, data or another tokenizer"):
        fit(model(), Synthetic(3), SETTINGS, replace(place, fingerprint="two"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state of a run's second step of four."""
    folder = tmp_path_factory.mktemp("saved")
    fit(model(), Synthetic(3), SETTINGS, Place(state=folder / "run.pt", save_every_s=0))
    return folder


@pytest.mark.parametrize("damage", ["nonsense", "cut", "flipped", "another file"])
def test_a_damaged_state_is_set_aside_and_the_run_begins_again(
    damage: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    place = Place(state=tmp_path / "run.pt", log=tmp_path / "log", save_every_s=0)
    content = bytearray((saved / "run.pt").read_bytes())
    content[len(content) // 2] ^= 4
    whole = (saved / "run.pt").read_bytes()
    bad = {"nonsense": b"PK nonsense", "cut": whole[:-900], "flipped": bytes(content)}
    if damage == "another file":
        torch.save({"weights": torch.zeros(3)}, tmp_path / "run.pt")
        bad[damage] = (tmp_path / "run.pt").read_bytes()
    (tmp_path / "run.pt").write_bytes(bad[damage])
    fit(model(), Synthetic(3), SETTINGS, place)
    assert "set aside as run.pt.damaged, the run begins again" in capsys.readouterr().err
    assert (tmp_path / "run.pt.damaged").read_bytes() == bad[damage]
    assert len(losses(tmp_path / "log")) == 3


def test_no_flipped_bit_of_a_state_changes_what_is_read(saved: Path, tmp_path: Path):
    """Sixty random bits: each is noticed, or lies where nothing is read (alignment between the records)."""
    whole = (saved / "run.pt").read_bytes()
    right = torch.load(saved / "run.pt", weights_only=True)
    rng, noticed = np.random.default_rng(0), 0
    for position in rng.integers(0, len(whole), 60):
        content = bytearray(whole)
        content[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "run.pt").write_bytes(content)
        if state.damage(tmp_path / "run.pt"):
            noticed += 1
            continue
        read = torch.load(tmp_path / "run.pt", weights_only=True)
        assert read["step"] == right["step"] and read["losses"] == right["losses"]
        for name, weight in right["model"].items():
            assert torch.equal(read["model"][name], weight), (position, name)
        for index, moments in right["optimiser"]["state"].items():
            for name, value in moments.items():
                assert torch.equal(read["optimiser"]["state"][index][name], value), (position, index, name)
    assert noticed > 30


def test_a_loss_that_is_no_number_stops_with_step_and_batch(tmp_path: Path):
    class Poisoned(Synthetic):
        def batch(self, step: int) -> TrainingBatch:
            if step == 3:
                with torch.no_grad():
                    broken.blocks[1].down.weight[0, 0] = float("nan")
            return super().batch(step)

    broken = model()
    with pytest.raises(UserError, match=r"became nan .* at step 4 of 9 on rows of step 3: lower lr"):
        fit(broken, Poisoned(9), SETTINGS, Place(log=tmp_path / "log"))
    assert len(losses(tmp_path / "log")) == 3


def test_running_out_of_memory_names_the_setting(tmp_path: Path):
    """A process whose address space ends 300 MB above what it holds, and a batch that needs more."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import resource, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training_loop import SETTINGS, Place, Synthetic, UserError, fit, model\n"
        "fit(model(), Synthetic(1), SETTINGS, Place())\n"
        "held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 300_000_000,) * 2)\n"
        "try:\n"
        "    fit(model(), Synthetic(2, rows=100_000), SETTINGS, Place())\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "out of memory: set a smaller micro_rows in the study (it is 0" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_run_killed_with_sigkill_goes_on_with_the_same_bits(tmp_path: Path):
    """Killed from outside at whatever step it is, twice."""
    fit(model(), Synthetic(60), SETTINGS, Place(log=tmp_path / "whole"))
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, time; from pathlib import Path; import torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training_loop import SETTINGS, Synthetic, model\n"
        "from evalengine.training.fitting.loop import fit\n"
        "from evalengine.training.fitting.state import Place\n"
        "torch.set_num_threads(1)\n"
        f"here = Path({str(tmp_path)!r})\n"
        "place = Place(state=here / 'state.pt', log=here / 'log', save_every_s=0)\n"
        "fit(model(), Synthetic(60), SETTINGS, place, lambda step: time.sleep(0.02))\n"
    )
    for goal in (8, 25):
        process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        while not (tmp_path / "log").is_file() or len((tmp_path / "log").read_text().splitlines()) < goal:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        assert (tmp_path / "state.pt").is_file()
    fit(
        model(),
        Synthetic(60),
        SETTINGS,
        Place(state=tmp_path / "state.pt", log=tmp_path / "log", save_every_s=0),
    )
    assert losses(tmp_path / "log") == losses(tmp_path / "whole")


def test_bfloat16_products_learn_like_float32(tmp_path: Path):
    """Same batches: the curves stay within bfloat16's rounding of each other, and both fall."""
    for name, autocast in (("float32", False), ("bfloat16", True)):
        fit(model(), Synthetic(30), SETTINGS, Place(log=tmp_path / name, autocast=autocast))
    full, half = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert full != half
    assert half == pytest.approx(full, rel=0.02)
    assert full[-1] < full[0] - 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler")
def test_compiled_blocks_follow_the_eager_curve(tmp_path: Path):
    for name, compiled in (("eager", False), ("compiled", True)):
        fit(model(), Synthetic(4), SETTINGS, Place(log=tmp_path / name, compile=compiled))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)


def test_the_z_loss_is_added(tmp_path: Path):
    """Against the logits written out: z_loss times the mean squared log-sum-exp."""
    settings = replace(SETTINGS, z_loss=0.01)
    fit(model(), Synthetic(1), SETTINGS, Place(log=tmp_path / "without"))
    fit(model(), Synthetic(1), settings, Place(log=tmp_path / "with"))
    batch, start = Synthetic(1).batch(0), model()
    token, position = torch.from_numpy(batch.token_BT), torch.from_numpy(batch.position_BT)
    with torch.no_grad():
        logits = start.head(start.hidden(token, position, loop_mask(batch)))
    kept = torch.from_numpy(batch.target_BT) != IGNORE
    expected = 0.01 * float(logits.double().logsumexp(-1)[kept].square().mean())
    assert expected > 0.1
    found = losses(tmp_path / "with")[0] - losses(tmp_path / "without")[0]
    assert found == pytest.approx(expected, rel=1e-5)


def test_filled_up_rows_follow_the_same_curve(tmp_path: Path):
    """What compiled runs do to keep one shape: five rows of 32 become six of 40."""
    for width in (0, 40):
        settings = replace(SETTINGS, micro_rows=3)
        fit(model(), Synthetic(6, rows=5), settings, Place(log=tmp_path / f"{width}", width=width))
    assert losses(tmp_path / "40") == pytest.approx(losses(tmp_path / "0"), rel=1e-5)
    shapes = {part[0].shape for part in loop.micro_batches(Synthetic(1, rows=5).batch(0), 3, width=40)}
    assert shapes == {(3, 40)}


def test_batches_made_ahead_are_the_same_in_the_same_order():
    batches = Synthetic(7)
    plain = [batches.batch(step) for step in range(2, 7)]
    made = list(loop.one_ahead(map(batches.batch, range(2, 7))))
    assert [batch.contents for batch in made] == [batch.contents for batch in plain]
    for batch, same in zip(made, plain, strict=True):
        assert np.array_equal(batch.token_BT, same.token_BT)


def test_an_error_in_a_batch_made_ahead_reaches_the_caller():
    class Broken(Synthetic):
        def batch(self, step: int) -> TrainingBatch:
            if step == 2:
                raise UserError("a broken shard")
            return super().batch(step)

    made = loop.one_ahead(map(Broken(4).batch, range(4)))
    assert [next(made).contents for _ in range(2)] == ["rows of step 0", "rows of step 1"]
    with pytest.raises(UserError, match="a broken shard"):
        next(made)


def test_the_tensorboard_log_is_read_back_by_tensorboard(tmp_path: Path):
    """A run stopped after the state of step 4: what the first process logged beyond it is dropped."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    place = Place(
        state=tmp_path / "state.pt", log=tmp_path / "log", tensorboard=tmp_path / "tb", save_every_s=0
    )

    def stop(step: loop.Step) -> None:
        if step.step == 5:
            raise Stop

    with pytest.raises(Stop):
        fit(model(), Synthetic(8), SETTINGS, place, stop)
    fit(model(), Synthetic(8), SETTINGS, place)
    events = accumulator.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "grad_norm"}
    found = events.Scalars("loss")
    assert [event.step for event in found] == list(range(1, 9))
    assert [event.value for event in found] == pytest.approx(losses(tmp_path / "log"), rel=1e-6)
    rates = [learning_rate(step, 8, SETTINGS) for step in range(8)]
    assert [event.value for event in events.Scalars("lr")] == pytest.approx(rates, rel=1e-6)
