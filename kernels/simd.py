"""A small language over LLVM for kernels on the CPU.

PyTorch on a CPU has no product of bfloat16 matrices with float32 results and no way to look at a product
before it is written to memory. A kernel that needs this is written as Python functions that emit machine code
through llvmlite (which comes with Numba): `Value` has Python's operators, `Code` has loops, conditions and
memory. A vector is LANES float32 numbers; all addresses are int64.

Cost: compiled in each process on the first call, about 0.2 seconds; no C compiler, nothing on disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import binding, ir

LANES = 16
VECTOR = 4 * LANES  # bytes
I8, I32, I64 = (ir.IntType(n) for n in (8, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
VF, VI = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
LOG2E = 1.4426950408889634
# 2^x on [-1/2, 1/2], a polynomial through Chebyshev's nodes: relative error 3e-9 before rounding
EXP2 = (
    1.0, 0.6931472067028329, 0.24022650922289554, 0.05550327226669895, 0.00961805667843204, 0.0013400428177711937,
    0.00015461444724808513,
)  # fmt: skip


class _BFloat(ir.types.HalfType):
    """LLVM's bfloat, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()
PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


def _operator(integer: str, floating: str = "") -> Callable[[Value, Any], Value]:
    """A method of Value, by the names of LLVM's instructions for integers and for floating-point numbers."""

    def operate(self: Value, other: Any) -> Value:
        instruction = getattr(self.builder, floating if self.floating else integer)
        return Value(self.builder, instruction(self.of, self.lift(other)))

    return operate


def _comparison(sign: str) -> Callable[[Value, Any], Value]:
    def compare(self: Value, other: Any) -> Value:
        instruction = self.builder.fcmp_ordered if self.floating else self.builder.icmp_signed
        return Value(self.builder, instruction(sign, self.of, self.lift(other)))

    return compare


class Value:
    """A number or vector of the program that is being built; numbers of Python join in, one for every lane."""

    def __init__(self, builder: ir.IRBuilder, of: Any) -> None:
        self.builder, self.of = builder, of

    @property
    def floating(self) -> bool:
        kind = self.of.type
        return (kind.element if isinstance(kind, ir.VectorType) else kind) in (F32, F64)

    def lift(self, other: Any) -> Any:
        """The other operand in this one's type."""
        if isinstance(other, Value):
            return other.of
        kind = self.of.type
        return ir.Constant(kind, [other] * kind.count if isinstance(kind, ir.VectorType) else other)

    __add__ = _operator("add", "fadd")
    __sub__ = _operator("sub", "fsub")
    __mul__ = _operator("mul", "fmul")
    __truediv__ = _operator("", "fdiv")
    __floordiv__ = _operator("sdiv")
    __mod__ = _operator("srem")
    __and__ = _operator("and_")
    __lshift__ = _operator("shl")
    __lt__ = _comparison("<")
    __gt__ = _comparison(">")
    same = _comparison("==")

    def where(self, yes: Any, no: Any) -> Value:
        """`yes` where this condition holds, else `no`; one of the two is a Value."""
        like = yes if isinstance(yes, Value) else no
        return Value(self.builder, self.builder.select(self.of, like.lift(yes), like.lift(no)))

    def cast(self, kind: Any, how: str = "bitcast") -> Value:
        """As another type: the same bits, or by another of LLVM's conversions (trunc, zext, fpext, fptrunc)."""
        return Value(self.builder, getattr(self.builder, how)(self.of, kind))


class Variable:
    """A place in a register that loops may change."""

    def __init__(self, builder: ir.IRBuilder, start: Value) -> None:
        self.builder = builder
        with builder.goto_entry_block():
            self.place = builder.alloca(start.of.type)
        self.now = start

    @property
    def now(self) -> Value:
        return Value(self.builder, self.builder.load(self.place))

    @now.setter
    def now(self, value: Value) -> None:
        self.builder.store(value.of, self.place)


class Code:
    """The body of one function."""

    def __init__(self, function: ir.Function) -> None:
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.module = function.module

    def integer(self, number: int) -> Value:
        return Value(self.builder, I64(number))

    def vector(self, number: float) -> Value:
        return Value(self.builder, ir.Constant(VF, [number] * LANES))

    def variable(self, start: Value) -> Variable:
        return Variable(self.builder, start)

    def space(self, size: int) -> Value:
        """The address of `size` bytes on the stack, a multiple of 64."""
        with self.builder.goto_entry_block():
            block = self.builder.alloca(ir.ArrayType(ir.IntType(8), size + 64))
        return (Value(self.builder, self.builder.ptrtoint(block, I64)) + 63) & -64

    def load(self, address: Value, kind: Any = VF, align: int = 4) -> Value:
        pointer = self.builder.inttoptr(address.of, kind.as_pointer())
        return Value(self.builder, self.builder.load(pointer, align=align))

    def integers(self, address: Value, names: Sequence[str]) -> dict[str, Value]:
        """The int64 numbers there, one after another, by these names."""
        return {name: self.load(address + 8 * i, I64) for i, name in enumerate(names)}

    def store(self, value: Value, address: Value, align: int = 4) -> None:
        pointer = self.builder.inttoptr(address.of, value.of.type.as_pointer())
        self.builder.store(value.of, pointer, align=align)

    def splat(self, scalar: Value) -> Value:
        """A vector of one number."""
        nothing = ir.Constant(ir.VectorType(scalar.of.type, LANES), ir.Undefined)
        one = self.builder.insert_element(nothing, scalar.of, I32(0))
        return Value(self.builder, self.builder.shuffle_vector(one, nothing, ir.Constant(VI, [0] * LANES)))

    def ticket(self, address: Value) -> Value:
        """Adds one to the int64 there, for all threads, and returns what it was."""
        pointer = self.builder.inttoptr(address.of, I64.as_pointer())
        return Value(self.builder, self.builder.atomic_rmw("add", pointer, I64(1), "monotonic"))

    def least(self, a: Value, b: Any) -> Value:
        return (a < b).where(a, b)

    def call(self, name: str, *arguments: Value | int) -> None:
        """Calls another function of the program."""
        lifted = [x.of if isinstance(x, Value) else I64(x) for x in arguments]
        self.builder.call(self.module.get_global(name), lifted)

    def intrinsic(self, name: str, *arguments: Value) -> Value:
        """One of LLVM's own functions whose result has the type of its first argument."""
        operands = [x.of for x in arguments]
        kind = ir.FunctionType(operands[0].type, [x.type for x in operands])
        return Value(self.builder, self.builder.call(self.module.declare_intrinsic(name, (), kind), operands))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self.intrinsic("llvm.fma.v16f32", a, b, c)

    def exp(self, x: Value) -> Value:
        """e^x for x below 88; 1e-38 from -87 on down, NaN for NaN."""
        power = x * LOG2E
        power = (power < -126.0).where(-126.0, power)
        magic = 1.5 * 2**23 + 127  # adding it leaves the rounded power, plus 127, in the lowest bits
        rounded = power + magic
        rest = power - (rounded - magic)
        value = self.vector(EXP2[-1])
        for coefficient in EXP2[-2::-1]:
            value = self.fma(value, rest, self.vector(coefficient))
        return value * (rounded.cast(VI) << 23).cast(VF)

    def shift(self, top: Value) -> Value:
        """What is taken off before an exponential: the maximum, or nothing where all is masked."""
        return top.same(-float("inf")).where(0.0, top)

    def soft_capped(self, x: Value, softcap_L: Value) -> Value:
        """softcap * tanh(x / softcap), NaN for an infinite x, of which a soft-cap would leave no trace."""
        below = x < 0.0
        t = self.exp(below.where(x, x * -1.0) * 2.0 / softcap_L)
        capped = softcap_L * ((t * -1.0 + 1.0) / (t + 1.0))
        return below.where(capped * -1.0, capped) + (x - x)

    def transposed(self, rows: Sequence[Value]) -> list[Value]:
        """The columns of LANES vectors, in log2(LANES) rounds of exchanges between pairs of them."""
        lanes = list(rows)
        for distance in (1 << bit for bit in range(LANES.bit_length() - 1)):
            low = [j if not j & distance else LANES + j - distance for j in range(LANES)]
            high = [j + distance if not j & distance else LANES + j for j in range(LANES)]
            for i in (i for i in range(LANES) if not i & distance):
                pair = lanes[i].of, lanes[i + distance].of
                lanes[i], lanes[i + distance] = (
                    Value(self.builder, self.builder.shuffle_vector(*pair, ir.Constant(VI, picked)))
                    for picked in (low, high)
                )
        return lanes

    @contextlib.contextmanager
    def loop(self, start: Value | int, end: Value | int, step: int = 1) -> Iterator[Value]:
        """Runs its body for start, start + step, ... below end."""
        first, behind = (x if isinstance(x, Value) else self.integer(x) for x in (start, end))
        index = self.variable(first)
        with self.repeat() as leave:
            leave(behind - 1 < index.now)
            yield index.now
            index.now = index.now + step

    @contextlib.contextmanager
    def repeat(self) -> Iterator[Callable[[Value], None]]:
        """Runs its body until it calls what it was given with a condition that holds."""
        builder = self.builder
        body, after = builder.append_basic_block(), builder.append_basic_block()

        def leave(condition: Value) -> None:
            onwards = builder.append_basic_block()
            builder.cbranch(condition.of, after, onwards)
            builder.position_at_end(onwards)

        builder.branch(body)
        builder.position_at_end(body)
        yield leave
        builder.branch(body)
        builder.position_at_end(after)

    def when(self, condition: Value) -> Any:
        """Runs its body, that of a `with`, where the condition holds."""
        return self.builder.if_then(condition.of)


class Program:
    """Functions that call each other, as machine code for this CPU.

    `body(code, *arguments)` emits the function of its name, whose arguments are int64; a function may call those before it.
    """

    def __init__(self, **bodies: Callable[..., None]) -> None:
        module = ir.Module()
        for name, body in bodies.items():
            count = len(inspect.signature(body).parameters) - 1
            function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * count), name)
            code = Code(function)
            body(code, *(Value(code.builder, x) for x in function.args))
            code.builder.ret_void()
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        target = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(),
            features=binding.get_host_cpu_features().flatten(),
            opt=2,
            jit=True,
        )
        parsed = binding.parse_assembly(str(module))
        parsed.verify()
        options = binding.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = options.slp_vectorization = False  # done by hand
        passes = binding.create_pass_builder(target, options)
        passes.getModulePassManager().run(parsed, passes)
        self._engine = binding.create_mcjit_compiler(parsed, target)
        self._engine.finalize_object()

    def run(self, name: str, arguments: Sequence[int], threads: int) -> None:
        """Calls a function of one argument, the address of these integers, on PyTorch's own threads.

        PyTorch's OpenMP is asked directly: threads of another pool would contend with its threads, which spin for
        a while after each of its calls. Where there is none (macOS, Windows) one thread does all.
        """
        address = self._engine.get_function_address(name)
        block = (ctypes.c_int64 * len(arguments))(*arguments)
        parallel = _parallel() if threads > 1 else None
        if parallel is None:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(ctypes.addressof(block))
        else:
            parallel(address, ctypes.addressof(block), threads, 0)


@functools.cache
def _parallel() -> Any:
    """libgomp's GOMP_parallel(function, argument, threads, flags), which torch has loaded."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, TypeError, OSError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
