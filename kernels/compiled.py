"""What the Triton compiler makes of every kernel and shipped configuration: registers, spills, shared memory,
wgmma.

Needs no GPU: Triton compiles for any target and its own `cuobjdump` reads the result. `make kernels-snapshot`
writes the table to docs/kernels_compiled.md and a test holds the two together, so that a kernel that begins
to spill, or loses its tensor-core instructions, shows in a diff. Cost: about two seconds a configuration.

    python -m evalengine.kernels.compiled > docs/kernels_compiled.md
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

CAPABILITIES = (80, 90)
SHARED_LIMIT = {
    80: 166_912,
    90: 232_448,
}  # bytes a block may use (CUDA C++ Programming Guide, compute capabilities)
REGISTERS = 65_536  # of a multiprocessor
DIVISIBLE = ("D", "stride", "stride_h", "stride_w")  # integers that are multiples of 16 for every real head


class Spec(NamedTuple):
    """One kernel to compile: its Triton function, the types of its arguments and its compile-time values."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int


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

    @property
    def fits(self) -> bool:
        return self.shared <= SHARED_LIMIT[self.capability] and self.registers * self.warps * 32 <= REGISTERS


OPTIONS = (  # bias and scale, soft-cap, whether the last vocabulary tile is partial
    (False, False, False),
    (False, False, True),
    (True, False, True),
    (False, True, False),
    (True, True, True),
)


def tile_name(config: Any) -> str:
    """The configuration in a few words."""
    words = {"TMA": config.tma, "flat": config.flatten, "specialised": config.specialise}
    shape = f"{config.block_n}x{config.block_v}x{config.block_d}"
    return " ".join([shape, *(word for word, said in words.items() if said)])


def tile_spec(kind: str, dtype: str, config: Any, bias: bool, softcap: bool, partial: bool) -> Spec:
    """The main kernel for one configuration and one set of options."""
    import torch

    from evalengine.kernels import target_logprobs_triton as target

    blocks = (config.block_n, config.block_d), (config.block_v, config.block_d)
    operands = [f"tensordesc<{dtype}[{n}, {d}]>" if config.tma else f"*{dtype}" for n, d in blocks]
    types = {"h_ND": operands[0], "w_VD": operands[1], "bias_V": f"*{dtype}", "argmax_KN": "*i32"}
    constants = target.tile_constants(config, torch.float32, config.block_v + partial)
    constants |= {"HAS_BIAS": bias, "HAS_SCALE": bias, "HAS_SOFTCAP": softcap}
    said = {"bias, scale": bias, "soft-cap": softcap, "partial": partial and not bias}
    options = ", ".join(word for word, yes in said.items() if yes)
    name = f"{kind} {dtype} {tile_name(config)}" + (f": {options}" if options else "")
    return Spec(name, target._tile_kernel, types, constants, config.warps, config.stages)


def specs(capability: int) -> Iterator[Spec]:
    """Every kernel in every shipped configuration for one compute capability, and the candidates."""
    from evalengine.kernels import choice_scores_triton as choice
    from evalengine.kernels import linear_cross_entropy_triton as loss
    from evalengine.kernels import logits_logprobs_triton as logits
    from evalengine.kernels import target_logprobs_triton as target

    if capability >= 90:
        tiles = [("bf16", target.hopper_16bit(*options[:2]), *options) for options in OPTIONS]
        tiles += [("bf16", tile[1]._replace(tma=False, flatten=False), *tile[2:]) for tile in tiles]
    else:
        tiles = [("bf16", target.AMPERE_16BIT, *options) for options in OPTIONS]
    tiles += [("fp32", target.FLOAT32, *options) for options in OPTIONS]
    yield from (tile_spec("tile", *tile) for tile in tiles)
    for config in target.CANDIDATES if capability >= 90 else ():
        if config not in [tile[1] for tile in tiles]:
            yield tile_spec("candidate", "bf16", config, False, False, False)
    yield Spec(
        "row", target._row_kernel, {"argmax_KN": "*i32", "argmax_N": "*i32"}, target.ROW_CONSTANTS, 4, 3
    )
    flags = {"HAS_BIAS": True, "HAS_SCALE": True, "HAS_SOFTCAP": True}
    indices = {"row_T": "*i32", "token_T": "*i32", "argmax_N": "*i32", "greedy_T": "*i1"}
    for dtype in ("bf16", "fp32"):
        heads = {"h_ND": f"*{dtype}", "w_VD": f"*{dtype}", "bias_V": f"*{dtype}"}
        constants = {**flags, **target.TARGET_CONSTANTS}
        yield Spec(f"target {dtype}", target._target_kernel, {**heads, **indices}, constants, 4, 3)
    for dtype in ("bf16", "fp32"):
        rows = {"logits_NV": f"*{dtype}", "argmax_N": "*i32"}
        flags = {"HAS_SCALE": True, "HAS_SOFTCAP": True}
        constants = {**flags, **logits.ROW_CONSTANTS}
        yield Spec(f"logits row {dtype}", logits._logits_row_kernel, rows, constants, logits.ROW_WARPS, 3)
    constants = {**flags, **logits.TARGET_CONSTANTS}
    types = {"logits_NV": "*bf16", **indices}
    yield Spec("logits target bf16", logits._logits_target_kernel, types, constants, 4, 3)
    types = {**dict.fromkeys(("target_offset_C1", "choice_offset_I1", "gold_I"), "*i64"), "pick_SI": "*i32"}
    yield Spec("choice sums", choice._loglik_kernel, types, {"BLOCK_C": choice.BLOCK_C}, 1, 3)
    yield Spec("choice", choice._item_kernel, types, choice.item_constants(5, True), 1, 3)
    for dtype, full in (("bf16", False), ("bf16", True), ("fp32", True)):
        types = {"logits_RV": f"*{dtype}", "bias_V": f"*{dtype}", "target_R": "*i64"}
        constants = {"HAS_BIAS": full, "HAS_SOFTCAP": full, **loss.LOSS_CONSTANTS}
        name = f"loss {dtype}" + (" bias, soft-cap" if full else "")
        yield Spec(name, loss._loss_kernel, types, constants, loss.LOSS_WARPS, 3)


def compile_spec(spec: Spec, capability: int) -> Compiled:
    """Compiles one kernel for one capability and reads what the machine code uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = spec.kernel.arg_names
    signature = {name: spec.types.get(name) or _type_of(name) for name in names}
    signature.update(dict.fromkeys(spec.constants, "constexpr"))
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n in DIVISIBLE]
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
    warps = int(binary.metadata.num_warps)  # more than asked for where warps are specialised
    return Compiled(capability, spec.name, warps, spec.stages, registers, stack, shared, cores, tma)


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

    head = [
        "target",
        "kernel",
        "warps",
        "stages",
        "registers",
        "spilled bytes",
        "shared bytes",
        "tensor cores",
        "TMA",
    ]
    text = [
        "# Compiled kernels",
        "",
        f"Triton {triton.__version__}, compiled without a GPU; refresh with `make kernels-snapshot`.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|---|" + "--:|" * 5 + "---|---|",
    ]
    for x in lines:
        cells = (
            f"sm_{x.capability}",
            x.name,
            x.warps,
            x.stages,
            x.registers,
            x.stack,
            x.shared,
            x.tensor_cores,
        )
        text.append("| " + " | ".join(map(str, cells)) + f" | {'yes' if x.tma else ''} |")
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
