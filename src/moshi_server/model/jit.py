"""Machine code for this CPU, made by LLVM while the program runs and run on torch's threads; it knows no arithmetic.

It needs ``llvmlite`` (the extra ``fast-cpu``) and no compiler. Threads are those of the OpenMP library that torch
has loaded: a pool of their own would fight with them for the cores.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

LANES: Final = 16
"""f32 numbers in one register."""
_TRIES: Final = 1000
"""Looks, of some 50 ns each, before a waiting thread offers its core to others."""
_FEATURES: Final = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")

Work = Callable[["Code", Any], None]


@cache
def available() -> bool:
    """Whether there are llvmlite, a CPU with 8-bit products of 64 bytes, and an OpenMP that torch computes with."""
    if importlib.util.find_spec("llvmlite") is None or _openmp() is None:
        return False
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return all(features.get(name, False) for name in _FEATURES)


@cache
def _openmp() -> ctypes.CDLL | None:
    """GNU's OpenMP as torch has loaded it; None where torch has another one, or comes without its own."""
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "GOMP_parallel"):
            return library
    return None


class Code:
    """What a kernel is written with: LLVM's builder, and names for what kernels do often."""

    def __init__(self, builder: Any, module: Any) -> None:
        from llvmlite import ir

        self.ir, self.b, self.module = ir, builder, module
        self.i8, self.i16, self.i32, self.i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
        self.f16, self.f32 = ir.HalfType(), ir.FloatType()
        self.pointer = ir.PointerType()

    def vector(self, kind: Any, lanes: int = LANES) -> Any:
        """The type of ``lanes`` numbers."""
        return self.ir.VectorType(kind, lanes)

    def size(self, value: int) -> Any:
        """A constant, i64."""
        return self.ir.Constant(self.i64, value)

    def all(self, kind: Any, value: float) -> Any:
        """A constant in every lane of the vector type ``kind``."""
        return self.ir.Constant(kind, [self.ir.Constant(kind.element, value)] * kind.count)

    def spread(self, value: Any, lanes: int = LANES) -> Any:
        """A number in every lane."""
        kind = self.vector(value.type, lanes)
        one = self.b.insert_element(self.ir.Constant(kind, self.ir.Undefined), value, self.ir.Constant(self.i32, 0))
        return self.b.shuffle_vector(one, one, self.all(self.vector(self.i32, lanes), 0))

    def at(self, base: Any, offset: Any) -> Any:
        """The address ``offset`` bytes (i64 or int) behind ``base``."""
        offset = self.size(offset) if isinstance(offset, int) else offset
        return self.b.gep(base, [offset], source_etype=self.i8)

    def load(self, kind: Any, base: Any, offset: Any = 0) -> Any:
        """A number or vector at any address."""
        return self.b.load(self.at(base, offset), typ=kind, align=1)

    def store(self, value: Any, base: Any, offset: Any = 0) -> None:
        """Likewise."""
        self.b.store(value, self.at(base, offset), align=1)

    def call(self, name: str, kind: Any, *arguments: Any) -> Any:
        """One of LLVM's intrinsics, or an external function."""
        function = self.module.globals.get(name)
        if function is None:
            signature = self.ir.FunctionType(kind, [argument.type for argument in arguments])
            function = self.ir.Function(self.module, signature, name)
        return self.b.call(function, arguments)

    def prefetch(self, base: Any, offset: Any, *, near: int = 2) -> None:
        """Have the memory there brought to the second cache, or to the first (``near`` 3)."""
        hints = [self.ir.Constant(self.i32, value) for value in (0, near, 1)]  # to be read, how near, data
        self.call("llvm.prefetch.p0", self.ir.VoidType(), self.at(base, offset), *hints)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """X * y + z, rounded once."""
        return self.call(f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)

    def largest(self, x: Any) -> Any:
        """The largest lane; not a number if one is not."""
        return self.call(f"llvm.vector.reduce.fmaximum.v{x.type.count}f32", self.f32, x)

    def total(self, x: Any) -> Any:
        """The sum of all lanes: of halves, of their halves and so on, whatever LLVM's version."""
        lanes = x.type.count
        add = self.b.add if isinstance(x.type.element, self.ir.IntType) else self.b.fadd
        while lanes > 1:
            lanes //= 2
            indices = self.vector(self.i32, lanes)
            low = self.ir.Constant(indices, [self.ir.Constant(self.i32, n) for n in range(lanes)])
            high = self.ir.Constant(indices, [self.ir.Constant(self.i32, n + lanes) for n in range(lanes)])
            x = add(self.b.shuffle_vector(x, x, low), self.b.shuffle_vector(x, x, high))
        return self.b.extract_element(x, self.ir.Constant(self.i32, 0))

    def variable(self, value: Any) -> Any:
        """A place for ``value``, which LLVM makes a register of."""
        with self.b.goto_entry_block():
            place = self.b.alloca(value.type)
        self.b.store(value, place)
        return place

    def value(self, place: Any) -> Any:
        """What is in a `variable`."""
        return self.b.load(place, typ=place.allocated_type)

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
        """The body runs with an i64 from ``start`` on, while it is less than ``stop``."""
        start, stop = (self.size(bound) if isinstance(bound, int) else bound for bound in (start, stop))
        counter = self.variable(start)
        head, body, end = (self.b.append_basic_block(name) for name in ("head", "body", "end"))
        self.b.branch(head)
        self.b.position_at_end(head)
        index = self.value(counter)
        self.b.cbranch(self.b.icmp_signed("<", index, stop), body, end)
        self.b.position_at_end(body)
        yield index
        self.b.store(self.b.add(index, self.size(step)), counter)
        self.b.branch(head)
        self.b.position_at_end(end)

    def thread(self) -> Any:
        """The number of this thread, i64."""
        return self.b.sext(self.call("omp_get_thread_num", self.i32), self.i64)

    def threads(self) -> Any:
        """How many run this, i64."""
        return self.b.sext(self.call("omp_get_num_threads", self.i32), self.i64)

    def share(self, count: Any) -> tuple[Any, Any]:
        """A thread's part of ``count`` pieces: from, to."""
        thread, threads = self.thread(), self.threads()
        first = self.b.sdiv(self.b.mul(count, thread), threads)
        last = self.b.sdiv(self.b.mul(count, self.b.add(thread, self.size(1))), threads)
        return first, last

    @contextmanager
    def dealt(self, counter: Any, count: Any, together: int = 1) -> Iterator[Any]:
        """The body runs with each i64 below ``count`` on one thread or another, ``together`` in a row on the same.

        ``counter``, an i64 that is zero before, is where the threads take them from: one that is held up takes fewer.
        """
        head, body, end = (self.b.append_basic_block(name) for name in ("deal", "dealt", "out"))
        self.b.branch(head)
        self.b.position_at_end(head)
        first = self.b.atomic_rmw("add", counter, self.size(together), "monotonic")
        self.b.cbranch(self.b.icmp_signed("<", first, count), body, end)
        self.b.position_at_end(body)
        last = self.b.add(first, self.size(together))
        last = self.b.select(self.b.icmp_signed("<", last, count), last, count)
        with self.loop(first, last) as index:
            yield index
        self.b.branch(head)
        self.b.position_at_end(end)

    def meet(self, arrived: Any, threads: Any) -> None:
        """Wait until all ``threads`` (i64) have come here; ``arrived`` is an i64 that is zero before, for this once.

        They look again and again, which is over in less than a system call takes; one whose fellow does not come, since
        the system runs something else on its core, offers its own in between.
        """
        tries = self.variable(self.size(0))
        self.b.atomic_rmw("add", arrived, self.size(1), "acq_rel")
        head, wait, offer, end = (self.b.append_basic_block(name) for name in ("meet", "wait", "offer", "met"))
        self.b.branch(head)
        self.b.position_at_end(head)
        there = self.b.load_atomic(arrived, "acquire", 8, typ=self.i64)
        self.b.cbranch(self.b.icmp_signed("<", there, threads), wait, end)
        self.b.position_at_end(wait)
        self.call("llvm.x86.sse2.pause", self.ir.VoidType())
        tried = self.b.add(self.value(tries), self.size(1))
        self.b.store(tried, tries)
        self.b.cbranch(self.b.icmp_signed(">", tried, self.size(_TRIES)), offer, head)
        self.b.position_at_end(offer)
        self.call("sched_yield", self.i32)
        self.b.branch(head)
        self.b.position_at_end(end)


class Compiled:
    """A function that all threads of a call run, each on its share; it is given one block of 64-bit arguments."""

    def __init__(self, name: str, write: Work) -> None:
        library = _openmp()
        assert library is not None, "jit.available() says no"
        self._parallel = library.GOMP_parallel
        self._engine = _compile(name, write, library)
        self._address = ctypes.c_void_p(self._engine.get_function_address(name))
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._address.value or 0)

    def alone(self, *arguments: int) -> None:
        """Run it on this thread only."""
        block = (ctypes.c_int64 * len(arguments))(*arguments)
        self._alone(ctypes.addressof(block))

    def __call__(self, *arguments: int) -> None:
        """Run it on as many threads as torch uses; returns when all are done. The interpreter is free meanwhile."""
        block = (ctypes.c_int64 * len(arguments))(*arguments)
        threads = torch.get_num_threads()
        if threads == 1:
            self._alone(ctypes.addressof(block))
        else:
            self._parallel(self._address, block, ctypes.c_uint(threads), ctypes.c_uint(0))


def _compile(name: str, write: Work, library: ctypes.CDLL) -> Any:
    import llvmlite.binding as llvm
    from llvmlite import ir

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for function in ("omp_get_thread_num", "omp_get_num_threads"):
        llvm.add_symbol(function, ctypes.cast(getattr(library, function), ctypes.c_void_p).value)
    llvm.add_symbol("sched_yield", ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value)
    module = ir.Module(name)
    module.triple = llvm.get_process_triple()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()]), name)
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    # The builder's entry block holds variables only; all else follows.
    start = builder.append_basic_block("start")
    builder.branch(start)
    builder.position_at_end(start)
    write(Code(builder, module), function.args[0])
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    target = llvm.Target.from_triple(module.triple)
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit", opt=3
    )
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine
