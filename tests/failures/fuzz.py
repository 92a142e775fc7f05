"""Coverage-guided fuzzing of the readers that parse bytes: `python tests/failures/fuzz.py READER SECONDS [SEED]`.

With atheris (libFuzzer; `pip install atheris`, Python 3.11) inputs grow towards code that no input has reached yet. Without
it, good files are damaged at random. Either way: a reader reads, or raises UserError; all else is printed with the input and ends
the run. `python tests/failures/fuzz.py` lists the readers.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
MEMORY = 8 << 30  # bytes of address space beyond what is taken at the start

try:
    import atheris
except ImportError:
    atheris = None


class Reader(NamedTuple):
    """A file's name, good ones to begin with, and what reads it."""

    file: str
    good: list[bytes]
    read: Callable[[Path], Any]


def readers() -> dict[str, Reader]:
    import numpy as np
    import pyarrow as pa
    import yaml

    from evalengine import store, untrusted
    from evalengine.analysis.data import items, mixtures
    from evalengine.analysis.importing import harness, imported, samples, wide_table
    from evalengine.benchmarks import BENCHMARKS, load_items
    from evalengine.benchmarks.custom import read_benchmark
    from evalengine.checkpoints import resolve, weights
    from evalengine.plan import plans
    from evalengine.store import sealed
    from evalengine.training import study

    shapes = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    header = json.dumps({"__metadata__": {"format": "pt"}, **shapes}).encode()
    copa = {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 0}
    parts = {
        "tokenizer": {"vocab": 512},
        "sources": {"web": {"path": "w.txt"}},
        "mixtures": {"A": {"web": 1.0}},
    }
    sizes = {"d_model": 32, "layers": 1, "heads": 1, "head_dim": 32, "ffn": 32, "context": 64}
    steps = {"pretrain": {"tokens": 1000, "lr": 1e-3}, "sft": {"epochs": 1, "lr": 1e-3}}
    one = {**parts, "scales": {"S": {**sizes, **steps}}, "sft": {"data": [{"path": "c.jsonl"}]}, "seed": 1}
    own = {"name": "b", "category": "C", "context": "{q}?", "choices": "c", "gold": "g", "gold_is": "index"}
    lm_eval = {"results": {"piqa": {"acc,none": 0.5, "acc_norm,none": 0.6}}, "model_name": "1M-m-pt"}
    sample = {"doc_id": 0, "target": "1", "arguments": [["c", " a"], ["c", " b"]], "acc": 0.0,
              "filtered_resps": [["-1.0", "True"], ["-2.0", "False"]]}  # fmt: skip
    known = {"piqa": imported.Known("Commonsense", "acc_norm")}
    names = pa.array(["x"] * 2).dictionary_encode()
    scores = {**dict.fromkeys(store.KEYS, names), "item": ["i", "j"], "gold": [0, 1], "loglik": [[-1.0, -2.0]] * 2,
              "tokens": [[1, 1]] * 2, "chars": [[3, 4]] * 2, "bytes": [[3, 4]] * 2, "greedy": [[True, False]] * 2,
              "loglik_uncond": [None] * 2}  # fmt: skip
    table = io.BytesIO()
    plain = pa.table(scores).cast(store.schema()).replace_schema_metadata(None)
    with pa.ipc.new_file(table, plain.schema) as writer:
        writer.write_table(plain)
    offsets = np.arange(3)

    def arrow(path: Path) -> Any:
        """The parser behind the seal, as someone who forges the seal would reach it."""
        try:
            found = untrusted.read_arrow(path.read_bytes())
            found.validate(full=True)
        except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError, ValueError):
            return
        assert found.nbytes < 1000 * (path.stat().st_size + len(offsets)), "it unpacks to more than it holds"
        if found.schema.remove_metadata().equals(store.schema()):
            sealed.write(path.parent / "scores" / "1M-m-pt" / "piqa.arrow", found, {"default_score": "acc"})
            items.read_store(path.parent / "scores")

    def checkpoint(path: Path) -> Any:
        (path.parent / "config.json").write_text("{}")
        return resolve.discover([path.parent])

    def lm_eval_results(path: Path) -> Any:
        model = harness.model_of(path, harness.read_results(path))
        who = harness.identities([model], harness.NAME_PATTERN)[model]
        part = harness.read_lm_eval(path, who, known)
        imported.write_results(path.parent / "out", imported.combine([part]))

    def logged(path: Path) -> Any:
        shutil.rmtree(path.parent / "in", ignore_errors=True)  # other scores would not be replaced
        samples.import_samples([path], path.parent / "in", harness.NAME_PATTERN, known)

    def csv(path: Path) -> Any:
        part = wide_table.read_csv(path, wide_table.WideTable(mixture="m", stage="s"), known)
        imported.write_results(path.parent / "out", imported.combine([part]))

    lines = f"{json.dumps(copa)}\n{json.dumps(copa)}\n".encode()
    return {
        "safetensors": Reader(
            "model.safetensors",
            [len(header).to_bytes(8, "little") + header + bytes(24)],
            lambda path: weights.headers([path]),
        ),
        "arrow": Reader("x.arrow", [table.getvalue()], arrow),
        "plan": Reader("plan.arrow", [table.getvalue()], lambda path: plans.read_plan(path, NoItems)),
        "jsonl": Reader("copa.jsonl", [lines], lambda path: load_items(BENCHMARKS["copa"], path.parent)),
        "study": Reader("s.yaml", [yaml.safe_dump(one).encode(), json.dumps(one).encode()], study.load),
        "mixtures": Reader("s.yaml", [yaml.safe_dump(one).encode()], lambda p: mixtures.read_study(str(p))),
        "manifest": Reader("m.yaml", [b"a: {scale: 1M, mixture: m, stage: pt}\n"], resolve.read_manifest),
        "benchmark": Reader("b.yaml", [yaml.safe_dump(own).encode()], read_benchmark),
        "identity": Reader("evalengine.json", [b'{"scale": "1M", "mixture": "m", "stage": "pt"}'], checkpoint),
        "lm-eval": Reader("results_x.json", [json.dumps(lm_eval).encode()], lm_eval_results),
        "samples": Reader("samples_piqa_2024-01-01T00-00-00.0.jsonl", [json.dumps(sample).encode()], logged),
        "csv": Reader("table.csv", [b"m,s,piqa,rte\na,pt,0.5,0.1\na,sft,0.7,0.2\n"], csv),
    }  # fmt: skip


class NoItems:
    items: tuple[Any, ...] = ()


def main(name: str, seconds: int, seed: int) -> None:
    if atheris is not None:
        with atheris.instrument_imports(include=["evalengine", "yaml", "json"]):
            reader = readers()[name]
    else:
        reader = readers()[name]
    from evalengine import console
    from evalengine.errors import UserError

    console.set_json(True)
    console.warn = lambda text: None  # a damaged plan is said, and made again
    folder = Path(tempfile.mkdtemp(prefix="evalengine-fuzz-")) / "1M-m-pt"
    folder.mkdir()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    tried = 0

    def one(content: bytes) -> None:
        nonlocal tried
        tried += 1
        (folder / reader.file).write_bytes(content)
        try:
            reader.read(folder / reader.file)
        except UserError as refused:
            assert 0 < len(str(refused)) < 5000
        except BaseException:
            print(f"\n{name}: {base64.b64encode(content).decode()}", flush=True)
            raise

    end = time.monotonic() + seconds
    if atheris is None:
        from hostile import damaged

        draw = random.Random(seed)
        while time.monotonic() < end:
            one(damaged(draw.choice(reader.good), draw.randrange(2**32)))
        print(f"{name}: {tried:,} inputs")
        return
    corpus = folder.parent / "corpus"
    corpus.mkdir()
    for good in reader.good:
        (corpus / hashlib.sha256(good).hexdigest()).write_bytes(good)

    def timed(content: bytes) -> None:
        if time.monotonic() > end:
            print(
                f"{name}: {tried:,} inputs, {len(list(corpus.iterdir()))} kept for new coverage", flush=True
            )
            os._exit(0)
        one(content)

    atheris.Setup(
        [sys.argv[0], f"-seed={seed}", "-max_len=20000", "-rss_limit_mb=0", "-verbosity=0", str(corpus)],
        timed,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent)]
    if len(sys.argv) < 3:
        print(*readers())
    else:
        main(sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["1"])[0]))
