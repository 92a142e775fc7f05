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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import binding, ir

LANES = 16
VECTOR = 4 * LANES  # bytes
I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
VF, VI = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
LOG2E = 1.4426950408889634
# 2^x on [-1/2, 1/2], a polynomial through Chebyshev's nodes: relative error 3e-9 before rounding
EXP2 = (
    1.0,
    0.6931472067028329,
    0.24022650922289554,
    0.05550327226669895,
    0.00961805667843204,
    0.0013400428177711937,
    0.00015461444724808513,
)


class _BFloat(ir.types.HalfType):
    """LLVM's bfloat, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()
PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


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

    def _apply(self, name: str, other: Any) -> Value:
        name = "f" + name if self.floating and name in ("add", "sub", "mul", "div") else name
        return Value(self.builder, getattr(self.builder, name)(self.of, self.lift(other)))

    def _compare(self, sign: str, other: Any) -> Value:
        compare = self.builder.fcmp_ordered if self.floating else self.builder.icmp_signed
        return Value(self.builder, compare(sign, self.of, self.lift(other)))

    def __add__(self, other: Any) -> Value:
        return self._apply("add", other)

    def __sub__(self, other: Any) -> Value:
        return self._apply("sub", other)

    def __mul__(self, other: Any) -> Value:
        return self._apply("mul", other)

    def __truediv__(self, other: Any) -> Value:
        return self._apply("div", other)

    def __floordiv__(self, other: Any) -> Value:
        return self._apply("sdiv", other)

    def __mod__(self, other: Any) -> Value:
        return self._apply("srem", other)

    def __and__(self, other: Any) -> Value:
        return self._apply("and_", other)

    def __lshift__(self, other: Any) -> Value:
        return self._apply("shl", other)

    def __lt__(self, other: Any) -> Value:
        return self._compare("<", other)

    def __gt__(self, other: Any) -> Value:
        return self._compare(">", other)

    def same(self, other: Any) -> Value:
        """Whether both are equal."""
        return self._compare("==", other)

    def where(self, yes: Any, no: Any) -> Value:
        """`yes` where this condition holds, else `no`; one of the two is a Value."""
        like = yes if isinstance(yes, Value) else no
        return Value(self.builder, self.builder.select(self.of, like.lift(yes), like.lift(no)))

    def bits(self, kind: Any) -> Value:
        """The same bits as another type."""
        return Value(self.builder, self.builder.bitcast(self.of, kind))


class Variable:
    """A place in a register that loops may change."""

    def __init__(self, builder: ir.IRBuilder, kind: Any) -> None:
        self.builder = builder
        with builder.goto_entry_block():
            self.place = builder.alloca(kind)

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
        variable = Variable(self.builder, start.of.type)
        variable.now = start
        return variable

    def space(self, size: int) -> Value:
        """The address of `size` bytes on the stack, a multiple of 64."""
        with self.builder.goto_entry_block():
            block = self.builder.alloca(ir.ArrayType(ir.IntType(8), size + 64))
        return (Value(self.builder, self.builder.ptrtoint(block, I64)) + 63) & -64

    def load(self, address: Value, kind: Any = VF, align: int = 4) -> Value:
        pointer = self.builder.inttoptr(address.of, kind.as_pointer())
        return Value(self.builder, self.builder.load(pointer, align=align))

    def store(self, value: Value, address: Value, align: int = 4) -> None:
        pointer = self.builder.inttoptr(address.of, value.of.type.as_pointer())
        self.builder.store(value.of, pointer, align=align)

    def splat(self, scalar: Value) -> Value:
        """A vector of one number."""
        nothing = ir.Constant(ir.VectorType(scalar.of.type, LANES), ir.Undefined)
        one = self.builder.insert_element(nothing, scalar.of, I32(0))
        return Value(self.builder, self.builder.shuffle_vector(one, nothing, ir.Constant(VI, [0] * LANES)))

    def low(self, value: Value) -> Value:
        """The lower half of an int64."""
        return Value(self.builder, self.builder.trunc(value.of, I32))

    def widen(self, value: Value) -> Value:
        """An int16 as an int32, unsigned."""
        return Value(self.builder, self.builder.zext(value.of, I32))

    def soft_cap(self, x: Value, cap: Value) -> Value:
        """cap * tanh(x / cap)."""
        below = x < 0.0
        size = below.where(x * -1.0, x)
        t = self.exp(size * -2.0 / cap)
        capped = cap * ((t * -1.0 + 1.0) / (t + 1.0))
        return below.where(capped * -1.0, capped)

    def byte(self, value: Value) -> Value:
        """A truth value as an int8."""
        return Value(self.builder, self.builder.zext(value.of, I8))

    def double(self, value: Value) -> Value:
        return Value(self.builder, self.builder.fpext(value.of, F64))

    def single(self, value: Value) -> Value:
        return Value(self.builder, self.builder.fptrunc(value.of, F32))

    def log(self, value: Value) -> Value:
        """Natural logarithm of a double."""
        return self.call(self.external("llvm.log.f64", F64, F64), value)

    def ticket(self, address: Value) -> Value:
        """Adds one to the int64 there, for all threads, and returns what it was."""
        pointer = self.builder.inttoptr(address.of, I64.as_pointer())
        return Value(self.builder, self.builder.atomic_rmw("add", pointer, I64(1), "monotonic"))

    def least(self, a: Value, b: Any) -> Value:
        return (a < b).where(a, b)

    def call(self, function: Any, *arguments: Value) -> Value:
        return Value(self.builder, self.builder.call(function, [x.of for x in arguments]))

    def external(self, name: str, result: Any, *arguments: Any) -> Any:
        """One of LLVM's intrinsics."""
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, arguments), name)

    def fma(self, a: Value, b: Value, c: Any) -> Value:
        """a * b + c, rounded once."""
        function = self.external("llvm.fma.v16f32", VF, VF, VF, VF)
        return Value(self.builder, self.builder.call(function, (a.of, b.of, a.lift(c))))

    def exp(self, x: Value) -> Value:
        """e^x for x below 88; 1e-38 from -87 on down, NaN for NaN."""
        power = x * LOG2E
        power = (power < -126.0).where(-126.0, power)
        magic = 1.5 * 2**23 + 127  # adding it leaves the rounded power, plus 127, in the lowest bits
        rounded = power + magic
        rest = power - (rounded - magic)
        value = self.vector(EXP2[-1])
        for coefficient in EXP2[-2::-1]:
            value = self.fma(value, rest, coefficient)
        return value * (rounded.bits(VI) << 23).bits(VF)

    @contextlib.contextmanager
    def loop(self, start: Any, end: Value, step: Any = 1) -> Iterator[Value]:
        """Runs its body for start, start + step, ... below end."""
        index = self.variable(start if isinstance(start, Value) else self.integer(start))
        with self.repeat() as leave:
            leave(end - 1 < index.now)
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

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        with self.builder.if_then(condition.of):
            yield


class Program:
    """Functions that call each other, compiled together; `run` calls one."""

    def __init__(self) -> None:
        self.module = ir.Module()
        self._engine: Any = None

    def function(self, name: str, arguments: int, body: Callable[..., None]) -> ir.Function:
        """Adds one of that many int64 arguments; `body(code, *arguments)` emits it."""
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [I64] * arguments), name)
        code = Code(function)
        body(code, *(Value(code.builder, x) for x in function.args))
        code.builder.ret_void()
        return function

    def compile(self) -> Program:
        """Machine code for this CPU."""
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        target = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(),
            features=binding.get_host_cpu_features().flatten(),
            opt=2,
            jit=True,
        )
        module = binding.parse_assembly(str(self.module))
        module.verify()
        options = binding.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = options.slp_vectorization = False  # done by hand
        passes = binding.create_pass_builder(target, options)
        passes.getModulePassManager().run(module, passes)
        self._engine = binding.create_mcjit_compiler(module, target)
        self._engine.finalize_object()
        return self

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
