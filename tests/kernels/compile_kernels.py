"""What the Triton compiler makes of every kernel and shipped configuration: registers, spills, shared memory, wgmma.

Needs no GPU: Triton compiles for any target and its own `cuobjdump` reads the result. `make kernels-snapshot`
writes the table to docs/kernels_compiled.md and a test holds the two together, so that a kernel that begins
to spill, or loses its tensor-core instructions, shows in a diff. Cost: about two seconds a configuration.

    python tests/kernels/compile_kernels.py > docs/kernels_compiled.md
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evalengine import kernels

if TYPE_CHECKING:
    from evalengine.kernels.triton_common import Spec

CAPABILITIES = (80, 90)
# bytes a block may use (CUDA C++ Programming Guide, compute capabilities)
SHARED_LIMIT = {80: 166_912, 90: 232_448}
REGISTERS = 65_536  # of a multiprocessor


class Compiled(NamedTuple):
    """One line of the table."""

    capability: int
    name: str
    warps: int
    stages: int
    registers: int
    stack: int  # bytes of local memory a thread: spills
    shared: int  # bytes a block
    tensor_cores: str  # "wgmma", "mma" or ""
    tma: bool


def specs(capability: int) -> Iterator[Spec]:
    """Every kernel of every file for one compute capability; each `*_triton.py` has a function `specs`."""
    for path in sorted(Path(kernels.__file__).parent.glob("*_triton.py")):
        yield from importlib.import_module(f"evalengine.kernels.{path.stem}").specs(capability)


def compile_spec(spec: Spec, capability: int) -> Compiled:
    """Compiles one kernel for one capability and reads what the machine code uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = spec.kernel.arg_names
    signature = {name: spec.types.get(name) or _type_of(name) for name in names}
    signature.update(dict.fromkeys(spec.constants, "constexpr"))
    # tensors, and integers that are multiples of 16 for every real model
    aligned = [
        i
        for i, n in enumerate(names)
        if signature[n].startswith("*") or n == "D" or n.endswith("_D") or "stride" in n
    ]
    source = ASTSource(
        fn=spec.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in spec.constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": spec.warps, "num_stages": spec.stages}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage, sass = _disassemble(binary.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers: {usage!r}")
    cores = "wgmma" if "HGMMA" in sass else "mma" if "HMMA" in sass else ""
    registers, stack = int(found[1]), int(found[2])
    shared, tma = int(binary.metadata.shared), "UTMALDG" in sass
    return Compiled(capability, spec.name, spec.warps, spec.stages, registers, stack, shared, cores, tma)


def snapshot() -> list[Compiled]:
    """Compiles everything, on all cores."""
    places = [(capability, i) for capability in CAPABILITIES for i, _ in enumerate(specs(capability))]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_compile_at, places))


def _compile_at(place: tuple[int, int]) -> Compiled:
    capability, index = place
    return compile_spec(next(itertools.islice(specs(capability), index, None)), capability)


def render(lines: list[Compiled]) -> str:
    """The table as Markdown."""
    import triton

    text = [
        "# Compiled kernels",
        "",
        f"Triton {triton.__version__}, compiled without a GPU; refresh with `make kernels-snapshot`.",
        "",
        "| target | kernel | warps | stages | registers | spilled bytes | shared bytes | tensor cores | TMA |",
        "|---|---|" + "--:|" * 5 + "---|---|",
    ]
    for x in lines:
        cells = (f"sm_{x.capability}", *x[1:-1], "yes" if x.tma else "")
        text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"


def _type_of(name: str) -> str:
    """Types by the naming of arguments: a dimension suffix means a float32 tensor, a capital an integer."""
    if name in ("scale", "softcap", "z_loss"):
        return "fp32"
    return "i32" if name.isupper() or name.startswith("stride") else "*fp32"


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """(resource usage, machine code) by Triton's own cuobjdump."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        outputs = [
            subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "-sass")
        ]
    return outputs[0], outputs[1]


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("unset TRITON_INTERPRET: the interpreter compiles nothing", file=sys.stderr)
        return 1
    sys.stdout.write(render(snapshot()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
