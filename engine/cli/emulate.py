"""`evalengine emulate CKPT...`: emulated fine-tuning, scored beside the checkpoints that it is made of."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from evalengine import console
from evalengine.cli import score
from evalengine.errors import UserError

if TYPE_CHECKING:
    from evalengine.checkpoints import Checkpoint
    from evalengine.groups import CheckpointGroup


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "emulate",
        help="score checkpoints and, with them, emulated fine-tuning: a large base with a small model's fine-tuning",
        description="Scores the four checkpoints of every mixture that has two scales and two stages, and what emulates "
        "fine-tuning: logits = base + beta (tuned - ref), up (the larger scale before fine-tuning is the base) and down. "
        "Emulated scores are rows of the store with the stage eft, or eft@BETA. Run the same command again to continue.",
    )
    score.add_checkpoints(p, adapters=False)
    add = p.add_argument_group("emulation").add_argument
    add("--beta", default="1", metavar="B,B,...", help="strengths of the shift (default: 1)")
    add(
        "--direction",
        choices=["up", "down", "both"],
        default="both",
        help="up: the larger scale is the base (default: both)",
    )
    add("--scales", metavar="SMALL,LARGE", help="which two, where there are more or names do not say")
    add("--stages", metavar="BEFORE,AFTER", help="stages before and after fine-tuning (default: pt,sft)")
    for role, what in (
        ("base", "three checkpoints by name, in place of mixtures: the model whose logits are shifted"),
        ("tuned", "another model after fine-tuning"),
        ("ref", "that other model before fine-tuning"),
    ):
        add(f"--{role}", dest=f"eft_{role}", metavar="NAME", help=what)
    score.add_items(p)
    score.add_backend(p)
    score.add_ray(p, "score and emulate", hang_after=True)
    p.set_defaults(run=run, base=None, formats=None, chat=False)


def run(args: argparse.Namespace) -> int:
    from evalengine.checkpoints.resolve import discover

    if args.backend == "vllm":
        raise UserError("vLLM runs one model at a time, so it cannot emulate yet: use --backend torch")
    found = discover(args.checkpoints, args.manifest)
    groups = groups_of(args, found)
    taken = {one.name for one in found} & {emulated.name for group in groups for emulated in group.emulated}
    if taken:
        raise UserError(f"a checkpoint is named {min(taken)}, as emulated scores would be: rename it")
    return score.carry_out(args, groups, score.items_of(args))


def groups_of(args: argparse.Namespace, found: list[Checkpoint]) -> list[CheckpointGroup]:
    """What is emulated with what. Raises UserError."""
    from evalengine import emulation

    betas = emulation.parse_betas(args.beta)
    named = [args.eft_base, args.eft_tuned, args.eft_ref]
    if any(named):
        if not all(named):
            raise UserError("--base, --tuned and --ref name three checkpoints together: give all of them")
        if args.direction != "both" or args.scales or args.stages:
            raise UserError(
                "--direction, --scales and --stages are for mixtures: leave them out beside --base, --tuned and --ref"
            )
        by_name = {one.name: one for one in found}
        for name in named:
            if name not in by_name:
                raise UserError(f"{name} is not among the checkpoints given: {', '.join(list(by_name)[:6])}")
        if others := [name for name in by_name if name not in named]:
            console.warn(f"not scored, as --base, --tuned and --ref name others: {', '.join(others[:6])}")
        base, tuned, ref = (by_name[name] for name in named)
        return [emulation.of_three(base, tuned, ref, betas)]
    directions = emulation.DIRECTIONS if args.direction == "both" else (args.direction,)
    stages = pair(args.stages or "pt,sft", "--stages BEFORE,AFTER")
    scales = pair(args.scales, "--scales SMALL,LARGE") if args.scales else None
    groups, notes = emulation.groups_of(found, betas, directions, scales, stages)
    for note in notes:
        console.warn(note)
    return groups


def pair(text: str, option: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or parts[0] == parts[1] or not all(parts):
        raise UserError(f"{option} takes two different names, not '{text}'")
    return parts[0], parts[1]
