"""`evalengine export STORE`: the whole store as one file for DuckDB, polars or pandas."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.files import atomic


def register(subparsers: Any) -> None:
    p = subparsers.add_parser("export", help="write a score store as one Parquet or Arrow file")
    p.add_argument(
        "store", nargs="?", type=Path, default=Path("scores"), help="score store (default: scores/)"
    )
    p.add_argument(
        "--format", choices=["parquet", "arrow"], default="parquet", help="file format (default: parquet)"
    )
    p.add_argument(
        "--out", type=Path, help="file to write (default: STORE.parquet, or STORE.arrow, beside the store)"
    )
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from evalengine import load

    table = load(args.store)
    # a link keeps its own name; "." and ".." have none
    named = args.store if args.store.name not in ("", "..") else args.store.resolve()
    out = args.out or named.with_name(f"{named.name}.{args.format}")
    with atomic(out) as temporary:
        if args.format == "parquet":
            pq.write_table(table, temporary, compression="zstd")
        else:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    if args.json:
        console.emit_json({"file": str(out), "rows": len(table)})
    else:
        console.say(f"{out}: {len(table):,} rows")
    return 0
