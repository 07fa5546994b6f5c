"""Instructions of PTX that compute: from registers to one register, all threads of a block at once.

Every function takes an `Instruction` and returns one of a block, which returns the new value of all its threads.
Approximate instructions (`ex2.approx`, `div.full`) are computed exactly and rounded once; tensor cores cut off, as the
hardware's do, instead of rounding. What is not modelled is a fault.
"""

import functools

import numpy as np
from ecsfusion_kernels.ptx import WIDTHS, parts
from ptx_memory import UNSIGNED, ExecutionError, PartOfAWarpError

SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS = {16: np.float16, 32: np.float32, 64: np.float64}
TINY = np.finfo(np.float32).tiny
HALVES = {"f16": 0x8000, "bf16": 0x8000, "f16x2": 0x80008000, "bf16x2": 0x80008000}
SIGN_BITS = {"f32": 0x80000000, "f64": 1 << 63, **HALVES}


def dtype_of(type_):
    """The numpy dtype of a PTX type; bit patterns are unsigned."""
    if type_ == "pred":
        return np.bool_
    table = SIGNED if type_[0] == "s" else FLOATS if type_[0] == "f" and "x" not in type_ else UNSIGNED
    return table[WIDTHS[type_]]


def reader(program, text, type_):
    """A function of a block: the value of an operand in all threads, or one number for all."""
    if type_ == "bf16":
        bits = reader(program, text, "b16")
        return lambda block: (bits(block).astype(np.uint32) << np.uint32(16)).view(np.float32)
    dtype = dtype_of(type_)
    if text.startswith("%") and text.partition(".")[0] in ("%tid", "%ctaid", "%nctaid", "%ntid"):
        return lambda block: block.special[text].astype(dtype)
    if text in program.registers:
        if program.registers[text] == WIDTHS[type_]:
            if dtype in (np.bool_, UNSIGNED.get(WIDTHS[type_])):
                return lambda block: block.registers[text]
            return lambda block: block.registers[text].view(dtype)
        narrower = UNSIGNED.get(WIDTHS[type_])
        if narrower is None or program.registers[text] < WIDTHS[type_]:
            raise ExecutionError(f"operand {text} is too narrow for {type_}")
        return lambda block: block.registers[text].astype(narrower).view(dtype)
    value = immediate(text, type_)
    return lambda _: value


def immediate(text, type_):
    """A number that stands in the instruction, or the address of shared memory, which is 0."""
    dtype = dtype_of(type_)
    if text == "global_smem":
        return dtype(0)
    try:
        is_float = text[:2] in ("0f", "0d", "0F", "0D")
        bits = int(text[2:], 16) if is_float else int(text.rstrip("U"), 0)
    except ValueError:
        raise ExecutionError(f"operand {text} is not modelled") from None
    if type_ == "pred":
        return np.bool_(bits != 0)
    return UNSIGNED[WIDTHS[type_]](bits & ((1 << WIDTHS[type_]) - 1)).view(dtype)


def allow(instruction, *modifiers):
    """Refuse an instruction that has a modifier beside these."""
    if unknown := [part for part in instruction.opcode[1:-1] if part not in modifiers]:
        raise ExecutionError(f"modifier {', '.join(unknown)} is not modelled")


def flushed(function):
    """Subnormal results are zeros."""

    def compute(*values):
        result = function(*(np.where(np.abs(value) < TINY, np.copysign(0, value), value) for value in values))
        return np.where(np.abs(result) < TINY, np.copysign(result.dtype.type(0), result), result)

    return compute


def computing(function, *modifiers):
    """An instruction that is a function of operands of its own type."""

    def build(instruction, program):
        allow(instruction, "ftz", *modifiers)
        type_ = instruction.opcode[-1]
        values = [reader(program, text, type_) for text in instruction.operands[1:]]
        compute = flushed(function) if "ftz" in instruction.opcode and type_ == "f32" else function
        if len(values) == 2:
            x, y = values
            return lambda block: compute(x(block), y(block))
        return lambda block: compute(*[value(block) for value in values])

    return build


def fma(x, y, z):
    """One rounding, but for the bits that the wider type lacks."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    return (np.multiply(x, y, dtype=wide) + z).astype(x.dtype)


def divide(x, y):
    if x.dtype.kind == "f":
        return x / y
    return (x - truncated_remainder(x, y)) // np.where(y == 0, y.dtype.type(1), y)


def truncated_remainder(x, y):
    return np.fmod(x, np.where(y == 0, y.dtype.type(1), y))


def smaller(x, y):
    return np.fmin(x, y) if x.dtype.kind == "f" else np.minimum(x, y)


def larger(x, y):
    return np.fmax(x, y) if x.dtype.kind == "f" else np.maximum(x, y)


def negative(x):
    return x ^ x.dtype.type(-1) if x.dtype == np.bool_ else -x


def reciprocal(x):
    """`rcp.approx.ftz.f64` has no lower half."""
    return ((1 / x).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)


def through_float64(function):
    return lambda x: function(x.astype(np.float64)).astype(x.dtype)


def multiply(instruction, program):
    """`mul` and `mad` of integers: the lower half, the upper half, or all bits of the product."""
    name, type_ = instruction.opcode[0], instruction.opcode[-1]
    if type_[0] == "f":
        return computing(np.multiply, "rn")(instruction, program)
    allow(instruction, "lo", "hi", "wide")
    half = instruction.opcode[1]
    x, y = (reader(program, text, type_) for text in instruction.operands[1:3])
    width = WIDTHS[type_]
    result_type = f"{type_[0]}{2 * width}" if half == "wide" else type_
    if half == "hi" and width != 32:
        raise ExecutionError("is not modelled for this type")
    wide = dtype_of(f"{type_[0]}{2 * width}") if half != "lo" else dtype_of(type_)
    added = reader(program, instruction.operands[3], result_type) if name == "mad" else None

    def compute(block):
        product = np.multiply(x(block), y(block), dtype=wide)
        if half == "hi":
            product = (product >> wide(32)).astype(dtype_of(type_))
        return product if added is None else product + added(block)

    return compute


def shift(instruction, program):
    """By the width or more: zero, or the sign."""
    name, type_ = instruction.opcode[0], instruction.opcode[-1]
    allow(instruction)
    value, amount = (
        reader(program, instruction.operands[1], type_),
        reader(program, instruction.operands[2], "u32"),
    )
    last, dtype = WIDTHS[type_] - 1, dtype_of(type_)

    def compute(block):
        x, by = value(block), amount(block)
        within = np.minimum(by, last).astype(dtype)
        moved = x << within if name == "shl" else x >> within
        return np.where((by > last) & (name == "shl" or type_[0] != "s"), dtype(0), moved)

    return compute


def bits_of(instruction, program):
    """`bfe`: bits from a position on; of a signed number the last one is its sign."""
    type_ = instruction.opcode[-1]
    allow(instruction)
    value = reader(program, instruction.operands[1], type_)
    begin, length = (int(immediate(text, "u32")) for text in instruction.operands[2:])
    width, dtype = WIDTHS[type_], dtype_of(type_)
    if not 0 < length <= width - begin:
        raise ExecutionError("is modelled for bits inside of the number only")
    return lambda block: (value(block) << dtype(width - begin - length)) >> dtype(width - length)


def permute(instruction, program):
    """`prmt`: four bytes of eight."""
    allow(instruction)
    low, high, chosen = (reader(program, text, "b32") for text in instruction.operands[1:])

    def compute(block):
        both = low(block).astype(np.uint64) | (high(block).astype(np.uint64) << np.uint64(32))
        result = np.zeros(both.shape, np.uint32)
        for i in range(4):
            selector = (chosen(block) >> np.uint32(4 * i)).astype(np.uint64) & np.uint64(15)
            byte = (both >> ((selector & np.uint64(7)) * np.uint64(8))).astype(np.uint32) & np.uint32(255)
            byte = np.where(selector > 7, np.where(byte > 127, np.uint32(255), np.uint32(0)), byte)
            result |= byte << np.uint32(8 * i)
        return result

    return compute


def absolute(instruction, program):
    type_ = instruction.opcode[-1]
    if type_ not in SIGN_BITS:
        return computing(np.abs)(instruction, program)
    allow(instruction, "ftz")
    bits = reader(program, instruction.operands[1], f"b{WIDTHS[type_]}")
    kept = dtype_of(f"b{WIDTHS[type_]}")(~SIGN_BITS[type_] & ((1 << WIDTHS[type_]) - 1))
    return lambda block: bits(block) & kept


COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def compare(instruction, program):
    """`setp`: comparisons with NaN are false, of `equ` and its like true."""
    type_, name = instruction.opcode[-1], instruction.opcode[1]
    allow(instruction, name)
    if len(instruction.operands) != 3 or "|" in instruction.operands[0]:
        raise ExecutionError("is not modelled in this form")
    x, y = (reader(program, text, type_) for text in instruction.operands[1:])
    if name in COMPARISONS and (name != "ne" or type_[0] != "f"):
        return lambda block: COMPARISONS[name](x(block), y(block))
    if type_[0] != "f":
        raise ExecutionError("is not modelled in this form")
    if name in ("num", "nan"):
        return lambda block: (np.isnan(x(block)) | np.isnan(y(block))) ^ (name == "num")
    if name == "ne":
        return lambda block: (x(block) != y(block)) & ~(np.isnan(x(block)) | np.isnan(y(block)))
    if not name.endswith("u") or name[:-1] not in COMPARISONS:
        raise ExecutionError("is not modelled in this form")
    return lambda block: COMPARISONS[name[:-1]](x(block), y(block)) | np.isnan(x(block)) | np.isnan(y(block))


def select(instruction, program):
    type_ = f"b{WIDTHS[instruction.opcode[-1]]}"
    allow(instruction)
    x, y = (reader(program, text, type_) for text in instruction.operands[1:3])
    chosen = reader(program, instruction.operands[3], "pred")
    return lambda block: np.where(chosen(block), x(block), y(block))


def move(instruction, program):
    """A copy; `mov.b32 %r, {%a, %b}` puts registers together, the first lowest."""
    type_ = instruction.opcode[-1]
    allow(instruction)
    if not instruction.operands[1].startswith("{"):
        return reader(program, instruction.operands[1], type_)
    names = parts(instruction.operands[1][1:-1])
    width, dtype = WIDTHS[type_] // len(names), dtype_of(type_)
    values = [reader(program, name, f"b{width}") for name in names]
    return lambda block: sum(value(block).astype(dtype) << dtype(i * width) for i, value in enumerate(values))


def count_bits(instruction, program):
    allow(instruction)
    value = reader(program, instruction.operands[1], "b32")
    return lambda block: (
        np.unpackbits(value(block).view(np.uint8).reshape(-1, 4), axis=1).sum(1).astype(np.uint32)
    )


def to_bf16(x):
    """To the nearest, ties to even."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def to_tf32(x):
    """To the nearest, ties away from zero; 13 bits less."""
    bits = x.view(np.uint32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)


def to_f16(x):
    return x.astype(np.float16).view(np.uint16)


ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def truncated(numbers, dtype):
    whole = np.trunc(numbers)
    limits = np.iinfo(dtype)
    if not bool(((whole >= limits.min) & (whole < float(limits.max) + 1)).all()):
        raise ExecutionError("converts numbers that are out of range, which is not modelled")
    return whole.astype(dtype)


def convert(instruction, program):
    target, source = instruction.opcode[-2:]
    allow(instruction, target, "rn", "rna", *ROUNDINGS)
    to_packed = {"bf16x2": to_bf16, "f16x2": to_f16, "bf16": to_bf16, "f16": to_f16, "tf32": to_tf32}.get(
        target
    )
    values = [reader(program, text, source) for text in instruction.operands[1:]]
    if to_packed is not None and source != "f32":
        raise ExecutionError("is not modelled")
    if target in ("bf16x2", "f16x2"):
        high, low = values
        return lambda block: (
            (to_packed(high(block)).astype(np.uint32) << np.uint32(16))
            | to_packed(low(block)).astype(np.uint32)
        )
    if to_packed is not None:
        return lambda block: to_packed(values[0](block))
    if target[0] != "f" and source[0] == "f":
        # What is out of range would need a rule of its own; a kernel that needs one is refused where it gets there.
        if "rzi" not in instruction.opcode:
            raise ExecutionError("is not modelled")
        return lambda block: truncated(values[0](block), dtype_of(target))
    rounding = next((ROUNDINGS[name] for name in instruction.opcode if name in ROUNDINGS), None)
    dtype = dtype_of(target)
    return lambda block: (values[0](block) if rounding is None else rounding(values[0](block))).astype(dtype)


def shuffle(instruction, program):
    """A register of another thread of the warp."""
    mode = instruction.opcode[2]
    allow(instruction, "sync", mode)
    value, lane, clamp, members = (reader(program, text, "b32") for text in instruction.operands[1:])
    whole = {"bfly": 31, "idx": 31, "up": 0}.get(mode)
    if int(clamp(None)) != whole or int(members(None)) != 0xFFFFFFFF:
        raise ExecutionError("is modelled for whole warps, bfly, idx and up")

    def compute(block):
        own = np.arange(block.num_threads, dtype=np.uint32)
        if mode == "bfly":
            other = own ^ lane(block)
        elif mode == "idx":
            other = (lane(block) & np.uint32(31)) | (own & ~np.uint32(31))
        else:
            # The first threads of a warp have none so far below: their own.
            other = np.where((own & np.uint32(31)) >= lane(block), own - lane(block), own)
        return value(block)[other]

    return compute


REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}


def reduce(instruction, program):
    """`redux`: a sum, minimum or maximum of the warp."""
    type_, name = instruction.opcode[-1], instruction.opcode[2]
    allow(instruction, "sync", name)
    value, members = (
        reader(program, instruction.operands[1], type_),
        reader(program, instruction.operands[2], "b32"),
    )

    def compute(block):
        if (members(block) != np.uint32(0xFFFFFFFF)).any():
            raise ExecutionError("is modelled for whole warps")
        x = value(block).reshape(-1, 32)
        return np.repeat(REDUCTIONS[name].reduce(x, 1, dtype=x.dtype), 32)

    return compute


@functools.cache
def fragment(type_, num_registers, rows, columns, side):
    """Where the numbers in the registers of a warp stand in a matrix: indices that bring them in order.

    The numbers are counted as (register, half, lane). `side` is "a", "b" or "c"; see "Matrix Fragments" in the PTX ISA.
    """
    lane = np.arange(32)
    group, member = lane >> 2, lane & 3
    halves = 2 if type_ in ("bf16", "f16") else 1
    place = np.zeros((num_registers, halves, 32), np.int64)
    for i in range(num_registers):
        for half in range(halves):
            step = 8 if halves == 2 else 4
            along = (2 * member + half if halves == 2 else member) + step * (i // 2 if side == "a" else i)
            if side == "c":
                row, column = group + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * member + i % 2
            elif side == "a":
                row, column = group + 8 * (i % 2), along
            else:
                row, column = along, group
            place[i, half] = row * columns + column
    order = np.argsort(place.ravel())
    if (place.ravel()[order] != np.arange(rows * columns)).any():
        raise ExecutionError("this shape is not modelled")
    return order


def numbers_of(words, type_):
    """Bit patterns, of whatever width, as float64."""
    if type_ == "bf16":
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if type_ == "f16":
        return words.astype(np.uint16).view(np.float16).astype(np.float64)
    if type_ == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return words.view(dtype_of(type_)).astype(np.float64)


def of_all(value, block):
    """A number that is the same for all threads, as those of all."""
    return value if value.ndim else np.full(block.num_threads, value)


def check_whole_warps(mask):
    if mask is not None and (mask.reshape(-1, 32) != mask.reshape(-1, 32)[:, :1]).any():
        raise PartOfAWarpError("some threads of a warp do not take part")


def cut_off(x):
    """To float32, towards zero."""
    near = x.astype(np.float32)
    beyond = (np.abs(near.astype(np.float64)) > np.abs(x)) & np.isfinite(near)
    return np.where(beyond, np.nextafter(near, np.float32(0)), near)


MATRICES = {("m16n8k16", "bf16"), ("m16n8k16", "f16"), ("m16n8k8", "tf32"), ("m8n8k4", "f64")}


def matrix_product(instruction, program):
    """`mma`: D = A B + C of a warp, (number of registers of D, threads)."""
    shape = instruction.opcode[3]
    d_type, a_type, b_type, c_type = instruction.opcode[-4:]
    sum_type = "f64" if a_type == "f64" else "f32"
    if (shape, a_type) not in MATRICES or b_type != a_type or {d_type, c_type} != {sum_type}:
        raise ExecutionError("is not modelled")
    allow(instruction, "sync", "aligned", "row", "col", shape, d_type, a_type, b_type)
    m, n, k = (int(size) for size in shape.replace("m", " ").replace("n", " ").replace("k", " ").split())
    names = [parts(operand.strip("{} ")) for operand in instruction.operands]
    operands = []
    for registers, type_, rows, columns, side in (
        (names[1], a_type, m, k, "a"), (names[2], b_type, k, n, "b"), (names[3], c_type, m, n, "c"),
    ):  # fmt: skip
        bits = [reader(program, name, "b64" if type_ == "f64" else "b32") for name in registers]
        order = fragment(type_, len(registers), rows, columns, side)
        operands.append((bits, type_, order, rows, columns))
    back = np.argsort(fragment(c_type, len(names[0]), m, n, "c"))

    def matrix(block, bits, type_, order, rows, columns):
        words = np.stack([of_all(read(block), block) for read in bits]).reshape(len(bits), 1, -1, 32)
        if type_ in ("bf16", "f16"):
            words = np.concatenate([words & np.uint32(0xFFFF), words >> np.uint32(16)], 1)
        wide = numbers_of(words, type_).transpose(2, 0, 1, 3)
        return wide.reshape(len(wide), -1)[:, order].reshape(-1, rows, columns)

    def compute(block):
        a, b, c = (matrix(block, *operand) for operand in operands)
        d = a @ b + c
        d = d if sum_type == "f64" else cut_off(d)
        return (
            d.reshape(len(d), -1)[:, back]
            .reshape(len(d), -1, 32)
            .transpose(1, 0, 2)
            .reshape(len(names[0]), -1)
        )

    return compute


COMPUTING = {
    "add": computing(np.add, "rn"),
    "sub": computing(np.subtract, "rn"),
    "mul": multiply,
    "mad": multiply,
    "fma": computing(fma, "rn"),
    "div": computing(divide, "rn", "full", "approx"),
    "rem": computing(truncated_remainder),
    "min": computing(smaller),
    "max": computing(larger),
    "neg": computing(negative),
    "abs": absolute,
    "and": computing(np.bitwise_and),
    "or": computing(np.bitwise_or),
    "xor": computing(np.bitwise_xor),
    "not": computing(np.invert),
    "shl": shift,
    "shr": shift,
    "bfe": bits_of,
    "prmt": permute,
    "popc": count_bits,
    "setp": compare,
    "selp": select,
    "mov": move,
    "cvt": convert,
    "sqrt": computing(np.sqrt, "rn", "approx"),
    "rcp": computing(reciprocal, "approx"),
    "ex2": computing(through_float64(np.exp2), "approx"),
    "shfl": shuffle,
    "redux": reduce,
}
"""Instructions whose first operand gets the result."""

WHOLE_WARPS = {"shfl", "redux", "mma", "ldmatrix"}
"""Instructions in which every thread of a warp must take part."""
