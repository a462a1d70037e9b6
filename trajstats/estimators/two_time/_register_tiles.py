"""Register tiles as LLVM vector code: the inner loop of the pair kernels.

LLVM splits the 16 lanes into the registers that the machine has (one with AVX-512, two with AVX2, four with NEON) and
keeps the order of the additions, so that all machines with a fused multiply-add give the same bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
# Float32 additions per lane before the sum goes on in float64: the error bound of kernels.py rests on it.
RUN = 12
# What is summed over parameters, and how many sums that makes. The kernel is compiled for each; the mode and the shape
# of the tile reach the compiler as lengths of tuples.
MODES = ("square", "moments", "overlap", "product")
TERMS = {"square": 1, "moments": 2, "overlap": 3, "product": 1}

_I32, _I64, _F64 = ir.IntType(32), ir.IntType(64), ir.DoubleType()


@intrinsic
def magnitude(typingctx, word):  # type: ignore[no-untyped-def]
    """Make the mask of all bits but the sign."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[0].type((1 << (args[0].type.width - 1)) - 1)

    return word(word), codegen


@intrinsic
def ones(typingctx, word):  # type: ignore[no-untyped-def]
    """Count the bits that are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@intrinsic
def tile_sums(  # type: ignore[no-untyped-def]
    typingctx, mode, rows, cols, sample, base, stride, row_index, col_index, limits, n_vectors, out
):
    """Sum one tile of pairs over one strip."""
    shape = MODES[mode.count - 1], rows.count, cols.count, sample == types.float32
    word, count = types.uintp, types.intp
    signature = types.void(mode, rows, cols, sample, word, count, word, word, word, count, word)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_tile(builder, *shape, *args[4:])
        return context.get_dummy_value()

    return signature, codegen


def _emit_tile(
    b: Any, mode: str, rows: int, cols: int, single: bool, base: Any, stride: Any, *rest: Any
) -> None:  # over 50 lines: one straight piece of code generation, clearer whole
    row_index, col_index, limits, n_vectors, out = rest
    lane = ir.FloatType() if single else _F64
    vector, half, n_terms = ir.VectorType(lane, LANES), ir.VectorType(_F64, LANES // 2), TERMS[mode]
    zero, one = (ir.Constant(vector, [v] * LANES) for v in (0.0, 1.0))
    fma = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f{32 if single else 64}"
    )

    def entry(pointer: Any, kind: Any, k: int) -> Any:
        return b.load(b.gep(b.inttoptr(pointer, kind.as_pointer()), [_I64(k)]))

    def row(index: Any, k: int) -> Any:
        return b.inttoptr(b.add(base, b.mul(entry(index, _I64, k), stride)), vector.as_pointer())

    def spread(value: Any) -> Any:
        first = b.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
        return b.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))

    def pair(slot: int, r: int, x: Any, y: Any) -> None:
        if mode != "product":
            x = y = b.fsub(y, x)
        if mode in {"moments", "overlap"}:
            x = y = b.fmul(x, x)
            b.store(b.fadd(b.load(sums[slot]), x), sums[slot])
            slot += 1
        b.store(b.call(fma, [x, y, b.load(sums[slot])]), sums[slot])
        if mode == "overlap":
            old = b.load(sums[slot + 1])
            b.store(b.select(b.fcmp_ordered("<=", x, limit[r]), b.fadd(old, one), old), sums[slot + 1])

    left, right = [row(row_index, r) for r in range(rows)], [row(col_index, c) for c in range(cols)]
    limit = [spread(entry(limits, lane, r)) for r in range(rows)] if mode == "overlap" else []
    sums = [cgutils.alloca_once_value(b, zero) for _ in range(rows * cols * n_terms)]
    totals = [cgutils.alloca_once_value(b, ir.Constant(half, [0.0] * (LANES // 2))) for _ in sums]
    for total in totals:
        b.store(ir.Constant(half, [0.0] * (LANES // 2)), total)
    with cgutils.for_range(b, b.sdiv(b.add(n_vectors, _I64(RUN - 1)), _I64(RUN))) as run:
        low = b.mul(run.index, _I64(RUN))
        high = b.add(low, _I64(RUN))
        high = b.select(b.icmp_signed("<", high, n_vectors), high, n_vectors)
        for s in sums:
            b.store(zero, s)
        with cgutils.for_range(b, high, start=low) as k:
            x = [b.load(b.gep(p, [k.index]), align=64) for p in left]
            for c in range(cols):
                y = b.load(b.gep(right[c], [k.index]), align=64)
                for r in range(rows):
                    pair((r * cols + c) * n_terms, r, x[r], y)
        for s, total in zip(sums, totals, strict=True):
            folded = _fold(b, b.load(s), LANES)
            b.store(b.fadd(b.load(total), b.fpext(folded, half) if single else folded), total)
    place = b.inttoptr(out, _F64.as_pointer())
    for slot, total in enumerate(totals):
        value, width = b.load(total), LANES // 2
        while width > 1:
            value, width = _fold(b, value, width), width // 2
        b.store(b.extract_element(value, _I32(0)), b.gep(place, [_I64(slot)]))


def _fold(b: Any, x: Any, width: int) -> Any:
    # The upper half of a vector added to its lower half.
    kind = ir.VectorType(_I32, width // 2)
    low, high = (ir.Constant(kind, list(range(a, a + width // 2))) for a in (0, width // 2))
    return b.fadd(b.shuffle_vector(x, x, low), b.shuffle_vector(x, x, high))
