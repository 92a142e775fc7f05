"""`evalengine score CHECKPOINT...`: log-likelihoods of every choice of every item, into an Arrow store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine import console
from evalengine.errors import UserError
from evalengine.metrics import METRICS

if TYPE_CHECKING:
    from evalengine.backends import BackendSpec
    from evalengine.events import Event


def location(text: str) -> Path | str:
    from evalengine.remote import location

    return location(text)


def register(subparsers: Any) -> None:
    p = subparsers.add_parser(
        "score",
        help="score checkpoints on the benchmarks",
        description="Scores every choice of every item by log-likelihood and writes scores/<checkpoint>/<benchmark>.arrow. "
        "Run the same command again to continue an interrupted run: stored results are not scored again.",
    )
    p.add_argument(
        "checkpoints",
        nargs="+",
        type=location,
        metavar="CKPT",
        help="Hugging Face causal-LM directories, LoRA adapters, or URIs of models (s3://, gs://, hf://)",
    )
    p.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="the model that adapters are merged into (default: the folder that each one's adapter_config.json names)",
    )
    p.add_argument(
        "--data",
        type=Path,
        help="folder of <benchmark>.jsonl or .parquet files (default: the Hugging Face hub)",
    )
    p.add_argument(
        "--benchmarks", default="all", help="names, a category, or all (default), separated by commas"
    )
    p.add_argument(
        "--benchmark-file",
        type=Path,
        action="append",
        default=[],
        metavar="YAML",
        help="a benchmark of your own",
    )
    p.add_argument(
        "--variant", choices=["lm_eval"], help="reproduce lm-evaluation-harness's quirks (COPA, MultiRC)"
    )
    p.add_argument(
        "--lm-eval-tasks",
        metavar="NAMES",
        help="lm-evaluation-harness's multiple-choice tasks, as benchmarks; alone unless --benchmarks names others",
    )
    p.add_argument(
        "--out", type=location, default=Path("scores"), help="the score store, also a URI (default: scores/)"
    )
    p.add_argument("--limit", type=int, metavar="N", help="a seeded sample of N items of each benchmark")
    p.add_argument("--seed", type=int, default=0, help="seed of --limit and --fewshot (default: 0)")
    p.add_argument(
        "--fewshot",
        type=int,
        metavar="K",
        help="K solved train items before each item (default: 0; for --lm-eval-tasks, each task's own number)",
    )
    p.add_argument("--pmi", action="store_true", help="also score each choice without its context (acc_pmi)")
    p.add_argument("--backend", choices=["torch", "vllm"], default="torch")
    p.add_argument(
        "--vllm-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="vllm: a setting of its engine, such as tensor_parallel_size=2, gpu_memory_utilization=0.8 or max_model_len=4096",
    )
    p.add_argument("--verbose", action="store_true", help="vllm: show its own messages")
    p.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    p.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32 on CPU, bfloat16 on GPU"
    )
    p.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="tokens per forward (default: 2048 on CPU, 32768 on GPU)",
    )
    p.add_argument("--manifest", type=Path, metavar="YAML", help="checkpoint name -> {scale, mixture, stage}")
    p.add_argument(
        "--allow-pickle", action="store_true", help="also read pickled weights, which can run code"
    )
    p.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with a checkpoint"
    )
    p.add_argument("--fresh", action="store_true", help="score again what the store already holds")
    add_ray(p, "score")
    p.add_argument(
        "--hang-after",
        type=float,
        metavar="MINUTES",
        help="ray: a worker is replaced when it makes no progress for so long (default: 15)",
    )
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    console.set_json(args.json)
    from evalengine import runner
    from evalengine.benchmarks import resolve
    from evalengine.events import Stored
    from evalengine.outcomes import summaries
    from evalengine.remote_store import open_store
    from evalengine.resolve import discover
    from evalengine.resume import Options

    if args.batch_tokens is not None and args.batch_tokens < 1:
        raise UserError("--batch-tokens must be at least 1")
    found = discover(args.checkpoints, args.manifest, args.base)
    adapter = next((checkpoint.name for checkpoint in found if checkpoint.base), None)
    if adapter is not None and args.backend == "vllm":
        raise UserError(
            f"{adapter} is an adapter, which --backend vllm does not score: use --backend torch, or merge it into its base"
        )
    only_tasks = args.lm_eval_tasks and args.benchmarks == "all"
    benchmarks = [] if only_tasks else available(resolve(args.benchmarks, args.benchmark_file), args)
    options = Options(
        data=args.data,
        variant=args.variant,
        limit=args.limit,
        seed=args.seed,
        fewshot=args.fewshot,
        pmi=args.pmi,
        allow_pickle=args.allow_pickle,
        trust_remote_code=args.trust_remote_code,
        fresh=args.fresh,
    )
    more = []
    if args.lm_eval_tasks:
        from evalengine.lm_eval.tasks import load_tasks

        more = load_tasks(args.lm_eval_tasks, limit=args.limit, seed=args.seed, fewshot=args.fewshot)
    place = open_store(args.out, [checkpoint.name for checkpoint in found])
    item_sets = runner.load_item_sets(benchmarks, options, more)
    for items, default_score in item_sets:
        if METRICS[default_score].column == "loglik_uncond" and not args.pmi:
            raise UserError(f"{items.benchmark} is scored by {default_score}, which needs --pmi: add it")
    spec = backend_spec(args)

    def upload(event: Event) -> None:
        if isinstance(event, Stored):
            place.stored(event.path)

    if args.ray:
        from evalengine.cluster import scoring

        if args.device not in (None, "cpu", "cuda"):
            raise UserError(
                f"--device {args.device} names one device: with --ray give cpu or cuda, or leave it out"
            )
        outcomes = scoring.score(found, item_sets, spec, place.folder, options, cluster(args), upload)
    else:
        refuse_ray_options(args)
        backend = spec.make()
        try:
            outcomes = runner.score(found, item_sets, backend, place.folder, options, upload)
        finally:
            backend.close()
    if place.remote:
        place.stored(place.folder.resolve() / "runs.jsonl")
    report = list(summaries(outcomes, place.folder))
    if args.json:
        console.emit_json({"store": str(args.out), "checkpoints": report})
    else:
        show(report, args.out)
    return 1 if any(o.failure for o in outcomes) else 0


def available(wanted: list[Any], args: argparse.Namespace) -> list[Any]:
    """With --data and no benchmark named, those that the folder holds; what is missing is said."""
    from evalengine.benchmarks import benchmarks_in

    named = {part.strip() for part in args.benchmarks.split(",")}
    if args.data is None or not args.data.is_dir():
        return wanted
    found = benchmarks_in(args.data, wanted)
    missing = [b.name for b in wanted if b not in found]
    if not found:
        raise UserError(
            f"{args.data} holds no file of {', '.join(missing[:3])}...: it must hold <benchmark>.jsonl or .parquet"
        )
    if missing and not named & set(missing):
        console.warn(f"{args.data} has no file of {', '.join(missing)}: left out")
        return found
    return wanted


def backend_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the chosen backend is made with, but for its dtype."""
    common = {
        "batch_tokens": args.batch_tokens,
        "allow_pickle": args.allow_pickle,
        "trust_remote_code": args.trust_remote_code,
    }
    if args.backend == "vllm":
        if args.device:
            raise UserError(
                "--device is for --backend torch: vLLM takes the GPUs that CUDA_VISIBLE_DEVICES names"
            )
        from evalengine.vllm.backend import engine_settings

        return {**common, "verbose": args.verbose, **engine_settings(args.vllm_arg)}
    if args.vllm_arg:
        raise UserError("--vllm-arg is for --backend vllm: add that, or leave it out")
    return {**common, "device": args.device}


def backend_spec(args: argparse.Namespace) -> BackendSpec:
    from evalengine.backends import BackendSpec

    return BackendSpec(args.backend, args.dtype or "", backend_settings(args))


def add_ray(p: argparse.ArgumentParser, verb: str) -> None:
    """The options of scale-out, which `score` and `train` share."""
    p.add_argument(
        "--ray",
        metavar="ADDRESS",
        help=f"{verb} on a Ray cluster: HOST:PORT, auto, or local (starts one on this machine)",
    )
    p.add_argument("--workers", type=int, metavar="N", help="ray: workers at most (default: all that fit)")
    p.add_argument(
        "--gpus-per-worker", type=float, metavar="N", help="ray: default 1 where there are GPUs, else 0"
    )
    p.add_argument(
        "--cpus-per-worker",
        type=int,
        metavar="N",
        help="ray: default 1 next to a GPU, else a group of up to 4",
    )


def cluster(args: argparse.Namespace) -> Any:
    from evalengine.cluster.pool import Cluster

    for name in ("workers", "cpus_per_worker"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    minutes = getattr(args, "hang_after", None)
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UserError("--hang-after must be a number of minutes above 0")
    gpus = args.gpus_per_worker
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        raise UserError("--gpus-per-worker must be 0, a part of 1, or a whole number")
    if gpus is None and getattr(args, "backend", "") == "vllm":
        parallel = backend_settings(args).get("tensor_parallel_size")
        gpus = float(parallel) if isinstance(parallel, int) and parallel > 1 else None
    where = Cluster(args.ray, args.workers, args.cpus_per_worker, gpus)
    return where if minutes is None else where._replace(hang_s=60 * minutes)


def refuse_ray_options(args: argparse.Namespace) -> None:
    for name in ("workers", "gpus_per_worker", "cpus_per_worker", "hang_after"):
        if getattr(args, name, None) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for --ray: add --ray local, or leave it out")


def show(report: list[dict[str, Any]], out: Path | str) -> None:
    rows = []
    for r in report:
        rate = f"{r['items_per_second']:,.0f}" if r["items_per_second"] else ""
        mean = f"{r['mean_acc']:.3f}" if r["mean_acc"] is not None else ""
        status = "failed" if r["failure"] else "scored" if r["scored"] else "already there"
        rows.append(
            (
                r["checkpoint"],
                status,
                r["scored"],
                r["kept"],
                f"{r['items']:,}",
                f"{r['seconds']:.1f}",
                rate,
                mean,
            )
        )
    columns = ("checkpoint", "status", "scored", "kept", "items", "seconds", "items/s", "mean acc")
    console.table("Scores", columns, rows, left=2)
    for r in report:
        for note in dict.fromkeys(r["notes"]):
            console.say(f"{r['checkpoint']}: {note}")
    for r in report:
        if r["failure"]:
            console.say(f"failed: {r['failure']}")
    console.say(f"Store: {out}/  (next: evalengine correlate {out})")
