"""The loop that all stages share: batches in, a trained model out, resumable at any step.

AdamW on matrices with weight decay and on norms without, cosine schedule with warm-up, gradients clipped and
accumulated over micro-batches. The loss of a step is the mean over all its targets, or pairs, on every process, so one
process or many, one micro-batch or many, follow the same curve. Batches are functions of the step, so the
state to save is the model, the optimiser and the step: a killed run continues with the same bits on the CPU.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from evalengine.errors import UserError
from evalengine.training.data.rows import IGNORE, MEASURES, NO_PAIR, TrainingBatch
from evalengine.training.decoder.attention import whole_rows
from evalengine.training.decoder.model import Decoder
from evalengine.training.fitting import state
from evalengine.training.fitting.parallel import SINGLE, ProcessGroup, full
from evalengine.training.fitting.state import Place
from evalengine.training.study import Optimisation

EVALUATED_ROWS = 8  # in one forward without learning


class Batches(Protocol):
    steps: int

    def batch(self, step: int) -> TrainingBatch: ...


class Step(NamedTuple):
    """What one optimiser step did."""

    step: int  # counted from 1
    steps: int
    loss: float  # mean over the step's targets or pairs, nats
    tokens: int  # positions fed, padding included
    lr: float
    grad_norm: float
    flops: float  # that the model needs for it


def learning_rate(step: int, steps: int, settings: Optimisation) -> float:
    """Linear warm-up, then half a cosine from lr to min_lr * lr; `step` counts from 0."""
    warmup = max(1, round(settings.warmup * steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return settings.lr * (settings.min_lr + (1 - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def optimizer(model: nn.Module, settings: Optimisation) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=1e-8, fused=True
    )


def fit(
    model: Decoder,
    batches: Batches,
    settings: Optimisation,
    place: Place,
    report: Callable[[Step], None] = lambda step: None,
) -> float:
    """Trains `model` in place; returns the mean loss of the last tenth of the steps.

    Raises UserError when the loss stops being a number (naming step and batch), when memory runs out (naming
    the setting to lower), and when the saved state belongs to other settings.
    """
    model.to(place.device).train()
    if place.compile:
        for block in model.blocks:
            block.compile()
    wrapped, optim = place.group.wrap(model), optimizer(model, settings)
    first, losses = state.restore(place, model, optim)
    saved = time.monotonic()
    with state.step_log(place, first) as write:
        made: Iterator[TrainingBatch] = map(batches.batch, range(first, batches.steps))
        if place.device.startswith("cuda"):
            made = one_ahead(made)
        for step, batch in enumerate(made, first):
            lr = learning_rate(step, batches.steps, settings)
            (loss, *measured), norm = _update(wrapped, optim, batch, lr, settings, place)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(
                    f"the loss became {loss} (gradient norm {norm}) at step {step + 1} of {batches.steps}"
                    f" on {batch.contents}: lower lr, raise warmup, or look at that data"
                )
            losses.append(loss)
            attended = float(batch.position_BT.mean()) + 1
            flops = batch.token_BT.size * model.shape.flops_per_token(attended)
            entry = Step(step + 1, batches.steps, loss, batch.token_BT.size, lr, norm, flops)
            more = dict(zip(MEASURES, measured, strict=True)) if measured else {}
            write({**entry._asdict(), **more, "batch": batch.contents})
            report(entry)
            due = time.monotonic() - saved >= place.save_every_s
            if place.state and step + 1 < batches.steps and place.group.agree(due):
                state.save(place, model, optim, step + 1, losses)
                saved = time.monotonic()
    tail = losses[-max(1, batches.steps // 10) :]
    return sum(tail) / len(tail)


def one_ahead(batches: Iterator[TrainingBatch]) -> Iterator[TrainingBatch]:
    """The same batches in the same order; the next one is made while the device works on this one."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, batches, None)
            yield batch


def _update(
    wrapped: nn.Module,
    optim: torch.optim.Optimizer,
    batch: TrainingBatch,
    lr: float,
    settings: Optimisation,
    place: Place,
) -> tuple[list[float], float]:
    """One optimiser step: (means over the batch, the loss first; gradient norm before clipping)."""
    group = place.group
    parts = list(micro_batches(batch, settings.micro_rows, group, place.width))
    total = torch.zeros((), device=place.device)
    for number, part in enumerate(parts):
        with group.synchronise(wrapped, number == len(parts) - 1), autocast(place), out_of_memory(settings):
            whole = whole_rows(torch.from_numpy(part.position_BT))
            sums = wrapped(*fed(part, place), settings.z_loss, whole, part.pairs).reshape(-1)
            (sums[0] * (group.size / batch.terms)).backward()  # processes average their gradients
        total = total + sums.detach()
    norm = full(nn.utils.clip_grad_norm_(wrapped.parameters(), settings.clip))
    for parameters in optim.param_groups:
        parameters["lr"] = lr
    # the only time that a step waits for the device
    *summed, norm_before = torch.cat((group.sum(total), norm.reshape(1))).tolist()
    if math.isfinite(summed[0]) and math.isfinite(norm_before):
        optim.step()
    optim.zero_grad(set_to_none=True)
    return [value / batch.terms for value in summed], norm_before


def fed(part: TrainingBatch, place: Place) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and positions on the device, targets on the CPU, where the loss looks at them."""
    fed_BT, target_BT = [torch.from_numpy(a) for a in part[:2]], torch.from_numpy(part.target_BT)
    if place.device.startswith("cuda"):
        fed_BT = [x.pin_memory().to(place.device, non_blocking=True) for x in fed_BT]
    return fed_BT[0], fed_BT[1], target_BT


def micro_batches(
    batch: TrainingBatch, micro_rows: int, group: ProcessGroup = SINGLE, width: int = 0
) -> Iterator[TrainingBatch]:
    """This process's rows, a few at a time; every process gets equally many parts, filled up by rows without loss.

    With `width` every part has one shape, `micro_rows` x `width`, so that nothing is compiled twice.
    """
    arrays: list[np.ndarray] = [batch.token_BT, batch.position_BT, batch.target_BT]
    if batch.pairs:
        arrays.append(batch.pairs.label_BT)
    rows, own = batch.token_BT.shape
    spare_rows = -rows % (group.size * (micro_rows if width and micro_rows else 1))
    spare_columns = max(0, width - own)
    if spare_rows or spare_columns:
        arrays = [
            np.pad(a, ((0, spare_rows), (0, spare_columns)), constant_values=value)
            for a, value in zip(arrays, (0, 0, IGNORE, NO_PAIR), strict=False)
        ]
        arrays[1][:, own:] = np.arange(spare_columns)
        arrays[1][rows:] = np.arange(own + spare_columns)
    mine = [np.ascontiguousarray(a[group.rank :: group.size]) for a in arrays]
    size = micro_rows or len(mine[0])
    for start in range(0, len(mine[0]), size):
        token_BT, position_BT, target_BT, *labels = (a[start : start + size] for a in mine)
        pairs = batch.pairs and batch.pairs._replace(label_BT=labels[0])
        yield TrainingBatch(token_BT, position_BT, target_BT, batch.contents, pairs)


@contextlib.contextmanager
def out_of_memory(settings: Optimisation) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "allocate memory" not in str(error):
            raise
        now = f"it is {settings.micro_rows}" if settings.micro_rows else "it is 0, all rows at once"
        raise UserError(
            f"out of memory: set a smaller micro_rows in the study ({now}), or checkpoint_activations: true"
        ) from None


def autocast(place: Place) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(place.device.split(":")[0], dtype=torch.bfloat16, enabled=place.autocast)


@torch.no_grad()
def mean_loss(model: Decoder, batch: TrainingBatch, place: Place) -> float:
    """Mean loss over a batch's targets, without learning."""
    model.to(place.device).eval()
    total: Tensor | float = 0.0
    for part in micro_batches(batch, EVALUATED_ROWS):
        with autocast(place):
            total = total + model(*fed(part, place), 0.0, whole_rows(torch.from_numpy(part.position_BT)))
    return float(total) / int((batch.target_BT != IGNORE).sum())
