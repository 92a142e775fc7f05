"""`evalengine score CHECKPOINT...`: log-likelihoods of every choice of every item, into an Arrow store."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine import console
from evalengine.backends import DTYPES, NAMES
from evalengine.checkpoints.remote import location
from evalengine.errors import UserError
from evalengine.store.metrics import METRICS, accuracy

if TYPE_CHECKING:
    from evalengine.backends import BackendSpec
    from evalengine.benchmarks import Benchmark, ItemSet
    from evalengine.cluster.pool import Cluster
    from evalengine.events import Outcome
    from evalengine.groups import CheckpointGroup
    from evalengine.resume import Asked, ScoreOptions


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "score",
        help="score checkpoints on the benchmarks",
        description="Scores every choice of every item by log-likelihood and writes scores/<checkpoint>/<benchmark>.arrow. "
        "Run the same command again to continue an interrupted run: stored results are not scored again.",
    )
    add_checkpoints(p)
    formats = (
        "score every choice in several answer formats instead: those of a YAML file (name: template with {choice} or {letter}) "
        "or those that ship; stored in OUT/formats, for `explain`"
    )
    items = add_items(p)
    chat = "ask in each checkpoint's own chat template; stored as checkpoint NAME+chat of stage STAGE+chat"
    items.add_argument("--chat", action="store_true", help=chat)
    items.add_argument("--formats", nargs="?", const="", metavar="YAML", help=formats)
    cue = "with --formats: text, such as Answer:, to remove from the end of contexts, so that each format has it or not"
    items.add_argument("--cue", default="", metavar="TEXT", help=cue)
    add_backend(p)
    add_ray(p, "score", hang_after=True)
    p.set_defaults(run=run)


def add_checkpoints(p: argparse.ArgumentParser, adapters: bool = True) -> None:
    """`adapters`: with the option that names their base."""
    models = "Hugging Face causal-LM directories, LoRA adapters, or URIs of models (s3://, gs://, hf://)"
    p.add_argument("checkpoints", nargs="+", type=location, metavar="CKPT", help=models)
    out = "the score store, a folder or a URI (default: scores/)"
    p.add_argument("--out", type=location, default=Path("scores"), help=out)
    p.add_argument("--fresh", action="store_true", help="score again what the store already holds")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    add = p.add_argument_group("checkpoints").add_argument
    about = "checkpoint name -> {scale, mixture, stage, seed, blocks}; changed ones are written into OUT, nothing is scored again"
    add("--manifest", type=Path, metavar="YAML", help=about)
    if adapters:
        merged = "the model that adapters are merged into (default: the folder that each one's adapter_config.json names)"
        add("--base", type=Path, metavar="DIR", help=merged)
    add("--allow-pickle", action="store_true", help="also read pickled weights, which can run code")
    add("--trust-remote-code", action="store_true", help="run Python code that comes with a checkpoint")


def add_items(p: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = p.add_argument_group("benchmarks")
    add = group.add_argument
    files = "folder of <benchmark>.jsonl or .parquet files, or one with them in bench/ (default: the Hugging Face hub)"
    add("--data", type=Path, help=files)
    add("--benchmarks", default="all", help="names, a category, or all (default), separated by commas")
    own = "a benchmark of your own"
    add("--benchmark-file", type=Path, action="append", default=[], metavar="YAML", help=own)
    add("--variant", choices=["lm_eval"], help="reproduce lm-evaluation-harness's quirks (COPA, MultiRC)")
    tasks = "lm-evaluation-harness's multiple-choice tasks, as benchmarks"
    add("--lm-eval-tasks", metavar="NAMES", help=f"{tasks}; alone unless --benchmarks names others")
    add("--limit", type=int, metavar="N", help="a seeded sample of N items of each benchmark")
    add("--seed", type=int, default=0, help="seed of --limit and --fewshot (default: 0)")
    shots = "K solved train items before each item (default: 0; for --lm-eval-tasks, each task's own number)"
    add("--fewshot", type=int, metavar="K", help=shots)
    add("--pmi", action="store_true", help="also score each choice without its context (acc_pmi)")
    return group


def add_backend(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("how the models run").add_argument
    add("--backend", choices=NAMES, default="torch", help="what runs the models (default: torch)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--dtype", choices=DTYPES, help="default: float32 on CPU, bfloat16 on GPU")
    tokens = "tokens per forward (default: 2048 on CPU, 32768 on GPU)"
    add("--batch-tokens", type=int, metavar="N", help=tokens)
    layers = "torch.compile the layers: seconds at first, then faster; kept for later runs (auto: large models on a GPU)"
    add("--compile", choices=["auto", "on", "off"], default="auto", help=layers)
    setting = "vllm: a setting of its engine, such as tensor_parallel_size=2, gpu_memory_utilization=0.8 or max_model_len=4096"
    add("--vllm-arg", action="append", default=[], metavar="NAME=VALUE", help=setting)
    add("--verbose", action="store_true", help="vllm: show its own messages")


def add_ray(p: argparse.ArgumentParser, verb: str, hang_after: bool = False) -> None:
    """The options of scale-out, which `score` and `train` share."""
    add = p.add_argument_group("on a Ray cluster").add_argument
    where = "HOST:PORT, auto, ray://HOST:PORT, or local (starts one on this machine)"
    add("--ray", metavar="ADDRESS", help=f"{verb} on a Ray cluster: {where}")
    add("--workers", type=int, metavar="N", help="workers at most (default: all that fit)")
    gpus = "default: 1 where there are GPUs, else 0"
    add("--gpus-per-worker", type=float, metavar="N", help=gpus)
    cpus = "default: 1 next to a GPU, else a group of up to 4"
    add("--cpus-per-worker", type=int, metavar="N", help=cpus)
    if hang_after:
        how_long = "a worker is replaced when it makes no progress for so long (default: 15)"
        add("--hang-after", type=float, metavar="MINUTES", help=how_long)


def run(args: argparse.Namespace) -> int:
    from evalengine.checkpoints.resolve import asked_in_chat, discover
    from evalengine.groups import CheckpointGroup

    found = discover(args.checkpoints, args.manifest, args.base)
    if args.chat:
        found = [asked_in_chat(checkpoint) for checkpoint in found]
    adapter = next((checkpoint.name for checkpoint in found if checkpoint.base), None)
    if adapter is not None and args.backend == "vllm":
        raise UserError(
            f"{adapter} is an adapter, which --backend vllm does not score: use --backend torch, or merge it into its base"
        )
    asked = items_of(args)
    if args.formats is not None:
        asked = asked._replace(item_sets=in_formats(asked.item_sets, args.formats, args.cue))
    elif args.cue:
        raise UserError("--cue is for --formats: add that, or leave it out")
    return carry_out(args, [CheckpointGroup((checkpoint,)) for checkpoint in found], asked)


def carry_out(args: argparse.Namespace, groups: Sequence[CheckpointGroup], asked: Asked) -> int:
    """Scores groups of checkpoints here or on a cluster, and shows what has become of them; the exit code."""
    from evalengine import runner
    from evalengine.backends import models_for
    from evalengine.checkpoints.remote import formats_of, open_store
    from evalengine.events import Event, Relabelled, Stored

    spec, place = backend_spec(args), args.out if args.formats is None else formats_of(args.out)
    folder, upload = open_store(place, [one.name for group in groups for one in group.every])
    asked = asked._replace(out=folder)

    def on_event(event: Event) -> None:
        if isinstance(event, Stored | Relabelled):
            upload(event.path)

    if args.ray:
        from evalengine.cluster import scoring

        where = cluster(args, spec.settings.get("tensor_parallel_size"))
        outcomes = scoring.run(groups, asked, spec, where, on_event)
    else:
        refuse_ray_options(args)
        largest = max(len(group.members) for group in groups)
        with contextlib.closing(models_for(spec, largest)) as models:
            outcomes = runner.run(groups, asked, models, on_event)
    upload(folder / "runs.jsonl")
    report = [summary(outcome, asked) for outcome in outcomes]
    if args.json:
        console.emit_json({"store": str(place), "checkpoints": report})
    else:
        show(report, place, f"evalengine {'correlate' if args.formats is None else 'explain'} {args.out}")
    return 1 if any(o.failure for o in outcomes) else 0


def items_of(args: argparse.Namespace) -> Asked:
    """What the options of `add_items` ask for, into --out, which may be a URI until the store is opened."""
    from evalengine.benchmarks import resolve
    from evalengine.resume import Asked, ScoreOptions

    only_tasks = args.lm_eval_tasks and args.benchmarks == "all"
    benchmarks = [] if only_tasks else available(resolve(args.benchmarks, args.benchmark_file), args)
    options = ScoreOptions(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(ScoreOptions)}
    )
    more = []
    if args.lm_eval_tasks:
        from evalengine.lm_eval.tasks import load_tasks

        more = load_tasks(args.lm_eval_tasks, limit=args.limit, seed=args.seed, fewshot=args.fewshot)
    item_sets = load_item_sets(benchmarks, options, more)
    for items, default_score in item_sets:
        if METRICS[default_score].column == "loglik_uncond" and not args.pmi:
            raise UserError(f"{items.benchmark} is scored by {default_score}, which needs --pmi: add it")
    return Asked(item_sets, args.out, options)


def load_item_sets(
    benchmarks: Sequence[Benchmark], options: ScoreOptions, more: Sequence[tuple[ItemSet, str]] = ()
) -> list[tuple[ItemSet, str]]:
    """The items of every benchmark with the name of its default score; `more` behind them."""
    from evalengine.benchmarks import load_items

    o = options
    loaded = [
        load_items(b, o.data, variant=o.variant, limit=o.limit, seed=o.seed, fewshot=o.fewshot or 0)
        for b in benchmarks
    ]
    names = [b.name for b in benchmarks]
    if twice := [items.benchmark for items, _ in more if items.benchmark in names]:
        raise UserError(
            f"{twice[0]} is a benchmark and a task of lm-eval, which would be stored under one name: ask for one of them, or"
            " for each with an --out of its own"
        )
    return [*zip(loaded, (b.default_score for b in benchmarks), strict=True), *more]


def in_formats(item_sets: Sequence[tuple[ItemSet, str]], file: str, cue: str) -> list[tuple[ItemSet, str]]:
    """The items in the formats of a file, "" for those that ship. Raises UserError where no benchmark can be written so."""
    from evalengine.benchmarks import formats
    from evalengine.resume import own_contexts

    known = formats.read_formats(Path(file)) if file else formats.SHIPPED
    own = [items.benchmark for items, _ in item_sets if own_contexts(items)]
    if own:
        console.warn(f"left out of --formats, since their choices have different contexts: {', '.join(own)}")
    if len(own) == len(item_sets):
        raise UserError("no benchmark is left to score in formats: name others with --benchmarks")
    kept = [(items, score) for items, score in item_sets if items.benchmark not in own]
    return [(formats.in_formats(items, known, cue), score) for items, score in kept]


def available(wanted: list[Any], args: argparse.Namespace) -> list[Any]:
    """With --data and no benchmark named, those that the folder holds; what is missing is said."""
    from evalengine.benchmarks import held

    named = {part.strip() for part in args.benchmarks.split(",")}
    if args.data is None:
        return wanted
    found = held(args.data, wanted)
    missing = [b.name for b in wanted if b not in found]
    if missing and not named & set(missing):
        console.warn(f"{args.data} has no file of {', '.join(missing)}: left out")
        return found
    return wanted


def backend_spec(args: argparse.Namespace) -> BackendSpec:
    """The backend that the options ask for. Raises UserError for those of another one."""
    from evalengine.backends import BackendSpec

    if args.batch_tokens is not None and args.batch_tokens < 1:
        raise UserError("--batch-tokens must be at least 1")
    names = ("batch_tokens", "allow_pickle", "trust_remote_code")
    settings = {name: getattr(args, name) for name in names}
    if args.backend == "vllm":
        if args.device:
            raise UserError(
                "--device is for --backend torch: vLLM takes the GPUs that CUDA_VISIBLE_DEVICES names"
            )
        if args.compile != "auto":
            raise UserError("--compile is for --backend torch: leave it out")
        from evalengine.vllm.backend import engine_settings

        settings |= {"verbose": args.verbose, **engine_settings(args.vllm_arg)}
    elif args.vllm_arg:
        raise UserError("--vllm-arg is for --backend vllm: add that, or leave it out")
    else:
        settings |= {"device": args.device, "compile": args.compile}
    return BackendSpec(args.backend, args.dtype or "", settings)


def cluster(args: argparse.Namespace, parallel: Any = None) -> Cluster:
    """The cluster that the options describe; `parallel` is the number of GPUs that one model takes, where that is known."""
    from evalengine.cluster.pool import Cluster

    if getattr(args, "device", None) not in (None, "cpu", "cuda"):
        raise UserError(
            f"--device {args.device} names one device: with --ray give cpu or cuda, or leave it out"
        )
    for name in ("workers", "cpus_per_worker"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    minutes = getattr(args, "hang_after", None)
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UserError("--hang-after must be a number of minutes above 0")
    gpus = args.gpus_per_worker
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        raise UserError("--gpus-per-worker must be 0, a part of 1, or a whole number")
    if gpus is None and isinstance(parallel, int) and parallel > 1:
        gpus = float(parallel)
    where = Cluster(args.ray, args.workers, args.cpus_per_worker, gpus)
    return where if minutes is None else where._replace(hang_s=60 * minutes)


def refuse_ray_options(args: argparse.Namespace) -> None:
    for name in ("workers", "gpus_per_worker", "cpus_per_worker", "hang_after"):
        if getattr(args, name, None) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for --ray: add --ray local, or leave it out")


def summary(outcome: Outcome, asked: Asked) -> dict[str, Any]:
    """What the closing table and --json say of a checkpoint; the mean accuracy is over the benchmarks that were asked for."""
    import numpy as np

    from evalengine import store

    folder = asked.out / outcome.checkpoint.name
    names = [] if outcome.failure else sorted(items.benchmark for items, _ in asked.item_sets)
    tables = [store.read(path) for name in names if (path := folder / f"{name}.arrow").exists()]
    accuracies = [accuracy(table) for table in tables if b"formats" not in table.schema.metadata]
    return outcome.record() | {
        "items_per_second": round(outcome.items / outcome.seconds, 1) if outcome.items else None,
        "mean_acc": float(np.mean(accuracies)) if accuracies else None,
    }


def show(report: list[dict[str, Any]], out: Path | str, then: str) -> None:
    with_accuracy = any(r["mean_acc"] is not None for r in report)  # of answer formats there is none
    rows = [
        (
            r["checkpoint"],
            "failed" if r["failure"] else "scored" if r["scored"] else "already there",
            r["scored"],
            r["kept"],
            f"{r['items']:,}",
            f"{r['seconds']:.1f}",
            f"{r['items_per_second']:,.0f}" if r["items_per_second"] else "",
            *(["" if r["mean_acc"] is None else f"{r['mean_acc']:.3f}"] if with_accuracy else []),
        )
        for r in report
    ]
    columns = ["checkpoint", "status", "scored", "kept", "items", "seconds", "items/s"]
    columns += ["mean acc"] * with_accuracy
    console.table("Scores", columns, rows, left=2, optional=("items/s", "seconds", "kept"))
    for r in report:
        for note in r["notes"]:
            console.say(f"{r['checkpoint']}: {note}")
    for failure in dict.fromkeys(r["failure"] for r in report if r["failure"]):
        console.say(f"failed: {failure}")
    all_failed = all(r["failure"] for r in report)
    console.say(f"Store: {out}/" + ("" if all_failed else f"  (next: {then})"))
