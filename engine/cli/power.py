"""`evalengine power`: how many mixtures a study needs, and whether seeds are worth their runs."""

from __future__ import annotations

import argparse
import math
from typing import Any

from evalengine import console
from evalengine.errors import UserError

COMMON_R = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COMMON_N = (6, 9, 12, 18, 27, 54)
COMMON_RUNS = (9, 18, 27, 54, 108)


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "power",
        help="how many mixtures it takes to detect a correlation",
        description="How many mixtures it takes to detect a correlation of two stages over mixtures, and which correlation a "
        "number of mixtures can detect: the exact power of the t test of r = 0.",
    )
    add = p.add_argument
    add("--r", type=float, help="true correlation to detect (default: a table of several)")
    add("-n", type=int, help="number of mixtures: which correlations they can detect")
    add("--power", type=float, default=0.8, help="probability of detecting it (default 0.8)")
    add("--alpha", type=float, default=0.05, help="level of the two-sided test (default 0.05)")
    ceiling = "highest r that item noise allows (see the reliability table)"
    add("--ceiling", type=float, default=1.0, help=ceiling)
    share = "share of the variance between single runs that seeds have (see the seeds table)"
    add("--seed-share", type=float, default=0.0, help=share)
    add("--seeds", type=int, default=1, help="runs of each mixture, which are averaged (default 1)")
    inherited = "correlation of what seeds do before with what they do after: near 1 where fine-tuning keeps it (default 0)"
    add("--inherited", type=float, default=0.0, help=inherited)
    add("--json", action="store_true", help="print one JSON object")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from evalengine.analysis import power
    from evalengine.analysis.results import percent

    if not 0.0 < args.ceiling <= 1.0:
        raise UserError(f"--ceiling {args.ceiling:g} must be above 0 and at most 1")
    if not 0.0 <= args.seed_share < 1.0:
        raise UserError(f"--seed-share {args.seed_share:g} must be at least 0 and below 1")
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds} must be at least 1")
    if not -1.0 <= args.inherited <= 1.0:
        raise UserError(f"--inherited {args.inherited:g} must lie between -1 and 1")
    if not args.seed_share and (args.seeds > 1 or args.inherited):
        raise UserError("--seeds and --inherited say what seeds do: give their --seed-share too")
    blur = power.Blur(args.ceiling, args.seed_share, args.seeds, args.inherited)
    at_r = [args.r] if args.r is not None else COMMON_R
    needed = [
        power.plan(r, power.mixtures_needed(r, args.power, args.alpha, blur), blur, args.alpha) for r in at_r
    ]
    at_n = [args.n] if args.n is not None else COMMON_N
    smallest = [(n, power.detectable(n, args.power, args.alpha, blur)) for n in at_n]
    budgets = (args.n * args.seeds,) if args.n is not None else COMMON_RUNS
    seeded = budgets if args.seed_share else ()
    spent = [way for runs in seeded for way in power.spend(runs, args.power, args.alpha, blur)]
    if args.json:
        seen = [{"n": n, "r": r if r < 1 else None} for n, r in smallest]
        ways = [{**way._asdict(), "r": way.r if way.r < 1 else None} for way in spent]
        console.emit_json({"needed": [row._asdict() for row in needed], "detectable": seen, "budgets": ways})
        return 0
    if args.n is None or args.r is not None:
        console.table(
            "Mixtures needed to detect a true correlation",
            ["true r", "observed r", "mixtures", "power", f"{percent(1 - args.alpha)} interval"],
            [
                [f"{p.r:+.2f}", f"{p.observed:+.2f}", p.n, f"{p.power:.2f}", f"[{p.low:+.2f}, {p.high:+.2f}]"]
                for p in needed
            ],
            caption=f"Power {args.power:g}, two-sided test at {args.alpha:g}.",
        )
    if args.r is not None and args.n is not None:
        found = power.plan(args.r, args.n, blur, args.alpha)
        console.say(
            f"With {args.n} mixtures a true r of {args.r:g} is detected with probability {found.power:.2f}; an estimate of "
            f"{found.observed:.2f} would have the interval [{found.low:+.2f}, {found.high:+.2f}]."
        )
    if args.r is None:
        console.table(
            "Smallest true r detected", ["mixtures", "r"], [[n, smallest_r(r)] for n, r in smallest]
        )
    if spent:
        console.table(
            "More seeds or more mixtures?",
            ["runs a stage", "seeds", "mixtures", "smallest r detected", "observed r of a true 0"],
            [
                [w.runs, w.seeds, w.n, smallest_r(w.r), f"{blur._replace(seeds=w.seeds).seen(0.0):+.2f}"]
                for w in spent
            ],
            caption="Detected: told apart from the r that inherited seeds alone would show at a true 0. That r is taken as "
            "known; only several runs of a mixture measure it.",
        )
    return 0


def smallest_r(r: float) -> str:
    if math.isinf(r):
        return "none: too few mixtures"
    if r >= 1.0:
        return "none: noise hides it"
    return f"{r:.2f}" if r < 0.995 else "above 0.99"
