"""A GPU of one multiprocessor that executes a kernel's PTX, with numpy over the threads of a block.

The blocks run one after another in a random order, and those of a cooperative launch by turns. The threads of a block
run in step wherever they are at the same instruction, and those that are behind first. That hides nothing: `ptx_memory`
finds accesses of which another order of warps would change the result. Registers and shared memory begin as NaN, and an
asynchronous copy lands at any time.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from ecsfusion_kernels.ptx import WIDTHS, parts
from ptx_arithmetic import (
    COMPUTING,
    WHOLE_WARPS,
    allow,
    check_whole_warps,
    immediate,
    matrix_product,
    of_all,
    reader,
)
from ptx_hopper import fence, store_matrices, warpgroup
from ptx_memory import UNSIGNED, Clocks, ExecutionError, GlobalMemory, PartOfAWarpError, Region

MAX_STEPS = 3_000_000
"""Instructions of one block; a kernel that waits for another block would never end."""
POISON = {16: 0x7FED, 32: 0x7FABCDEF, 64: 0x7FF4ABCDABCDABCD}


class Copy:
    """Bytes on their way from global to shared memory, for the threads that asked for them."""

    def __init__(self, shared, source, target, addresses, filled, size, warps):
        self.shared, self.source, self.target, self.addresses = shared, source, target, addresses
        self.filled, self.size, self.warps, self.landed = filled, size, warps, False

    def land(self):
        if not self.landed:
            values = np.zeros((len(self.target), self.size), np.uint8)
            wanted = self.filled > 0
            place = self.addresses[wanted, None] + np.arange(self.size)
            values[wanted] = self.source.data[place] if wanted.any() else 0
            values[np.arange(self.size) >= self.filled[:, None]] = 0
            self.shared.land(self.target, values)
            self.landed = True

    def wait(self):
        self.land()
        self.shared.end_copy(self.target, self.size, self.warps)


class Registers(dict):
    """Registers by name; those that nothing has written hold NaN."""

    def __init__(self, widths, num_threads):
        self.widths, self.num_threads = widths, num_threads

    def __missing__(self, name):
        bits = self.widths[name]
        if bits == 1:
            return np.zeros(self.num_threads, bool)
        return np.full(self.num_threads, POISON[bits], UNSIGNED[bits])


class Block:
    """The threads of one block: their registers, shared memory and copies under way."""

    def __init__(self, machine, index, position):
        self.machine, self.num_threads = machine, 32 * machine.num_warps
        self.registers = Registers(machine.program.registers, self.num_threads)
        thread = np.arange(self.num_threads, dtype=np.uint32)
        self.special = {f"%tid.{axis}": thread if axis == "x" else np.zeros_like(thread) for axis in "xyz"}
        for axis, place, size in zip("xyz", position, machine.grid, strict=True):
            self.special[f"%ctaid.{axis}"] = np.full_like(thread, place)
            self.special[f"%nctaid.{axis}"] = np.full_like(thread, size)
            self.special[f"%ntid.{axis}"] = np.full_like(thread, self.num_threads if axis == "x" else 1)
        first = index * machine.num_warps
        self.group = slice(first, first + machine.num_warps)
        self.warps = first + thread.astype(np.int64) // 32
        data = np.full(-(-machine.shared_bytes // 16) * 16, 0xFF, np.uint8)
        self.shared = Region(
            data,
            "shared memory",
            machine.clocks,
            self.group,
            machine.granule,
            False,
            machine.races,
            machine.random,
        )
        self.steps = 0
        # Groups of copies and of products: those that are not committed yet are the last one.
        self.copies, self.products = [[]], [[]]

    def put(self, name, value, mask):
        """Set a register of the threads of a mask, None for all; arrays are never changed, so they may be shared."""
        if name == "_":
            return
        bits = self.registers.widths[name]
        dtype = UNSIGNED[bits] if bits > 1 else np.bool_
        if value.dtype.itemsize * 8 != bits and bits > 1:
            if value.dtype.itemsize * 8 > bits:
                raise ExecutionError(f"a result of {8 * value.dtype.itemsize} bits for {name}")
            value = value.astype(np.int64 if value.dtype.kind == "i" else np.uint64).astype(dtype)
        if value.dtype != dtype:
            value = value.view(dtype)
        if mask is not None:
            value = np.where(mask, value, self.registers[name])
        elif value.ndim == 0:
            value = np.full(self.num_threads, value)
        self.registers[name] = value

    def synchronize(self):
        """A barrier of all threads; some copies that are under way land now."""
        self.machine.clocks.synchronize(self.group)
        for group in self.copies:
            for copy in group:
                if self.machine.random.random() < 0.125:
                    copy.land()

    def wait_for_copies(self, pending):
        """Until at most so many committed groups are under way."""
        while len(self.copies) - 1 > pending:
            for copy in self.copies.pop(0):
                copy.wait()


class Machine:
    """Runs a program.

    Args:
        program: from `ecsfusion_kernels.ptx.parse`.
        num_warps: of a block.
        shared_bytes: of a block.
        races: whether accesses that may overtake one another are faults.
    """

    def __init__(self, program, num_warps, shared_bytes, races=True):
        self.program, self.num_warps, self.shared_bytes, self.races = program, num_warps, shared_bytes, races
        self.code = [None] * len(program.instructions)
        accesses = [i for i in program.instructions if i.opcode[0] in ("ld", "st") and is_shared(i)]
        self.granule = min([4, *(WIDTHS[access.opcode[-1]] // 8 for access in accesses)])

    def launch(self, grid, arguments, seed=0, cooperative=False):
        """Run all blocks in an order that depends on `seed`.

        Args:
            grid: blocks along up to three axes.
            arguments: tensors (changed in place), whole numbers and floats, one per parameter; those that Triton adds
                for its own use may be missing.
            seed: of the order of blocks and of the copies' landing.
            cooperative: whether all blocks are there at once, so that one may wait for another.
        """
        self.grid, self.random = (*grid, 1, 1)[:3], np.random.default_rng(seed)
        num_blocks = int(np.prod(self.grid))
        self.clocks = Clocks(num_blocks * self.num_warps)
        self.memory = GlobalMemory(self.clocks, self.races, self.random)
        self.parameters = {}
        given = [*arguments, *[0] * (len(self.program.parameters) - len(arguments))]
        for (name, size), value in zip(self.program.parameters, given, strict=True):
            if hasattr(value, "untyped_storage"):
                value = self.memory.place(value)
            elif isinstance(value, float):
                value = int(np.array(value, f"f{size}").view(f"u{size}"))
            self.parameters[name] = UNSIGNED[8 * size](int(value) & ((1 << 8 * size) - 1))
        order = list(np.ndindex(self.grid[::-1]))
        self.random.shuffle(order)
        with np.errstate(all="ignore"):
            runs = [self._run(index, position[::-1]) for index, position in enumerate(order)]
            while runs:
                run = runs[self.random.integers(len(runs)) if cooperative else 0]
                if next(run, "ended") == "ended":
                    runs.remove(run)

    def _run(self, index, position):
        """Run a block; at each of its branches another one may go on.

        Threads at the same instruction run together: `paths` is a list of (instruction, mask).
        Where an instruction wants whole warps, those that are there wait for the others of their warp.
        """
        block = Block(self, index, position)
        paths, arrived, waiting = [(0, None)], [], {}
        while paths or arrived:
            if not paths:
                block.synchronize()
                paths, arrived = arrived, []
            paths = merged(paths, block.num_threads)
            ready = [i for i, (at, mask) in enumerate(paths) if waiting.get(at, 0) != number_of(mask)]
            # With nobody to wait for, the instruction says what is wrong.
            at, mask = paths.pop(ready[-1] if ready else -1)
            # Those that are behind run until they reach the next.
            limit = min((other for other, _ in paths if other > at), default=len(self.code))
            try:
                at, kind, active, rest = self._advance(block, at, mask, limit)
            except PartOfAWarpError as error:
                if not ready:
                    raise
                paths.append((error.at, mask))
                waiting[error.at] = number_of(mask)
                continue
            waiting.pop(at, None)
            if rest is not None and rest.any():
                paths.append((at + 1, rest))
            if kind == "":
                paths.append((at, mask))
            elif kind == "bar":
                arrived.append((at + 1, active))
            elif kind == "bra":
                paths.append((self.code[at].execute, active))
                yield

    def _advance(self, block, at, mask, limit):
        """Execute up to a branch, a barrier, the end or `limit`: its place, its kind, who follows it, who does not."""
        while at < limit:
            if self.code[at] is None:
                self.code[at] = decode(self.program.instructions[at], self.program)
            code, active = self.code[at], mask
            if code.predicate:
                switch = block.registers[code.predicate]
                switch = ~switch if code.negated else switch
                active = switch if mask is None else switch & mask
                count = np.count_nonzero(active)
                if count == 0:
                    at += 1
                    continue
                active = None if count == block.num_threads else active
            block.steps += 1
            if block.steps > MAX_STEPS:
                raise ExecutionError(f"{self.program.name} does not end in {MAX_STEPS} instructions")
            if code.kind:
                rest = None if active is None else ~active if mask is None else mask & ~active
                return at, code.kind, active, rest
            try:
                code.execute(block, active)
            except ExecutionError as error:
                place = ", ".join(str(block.special[f"%ctaid.{axis}"][0]) for axis in "xyz")
                text = self.program.instructions[at].text
                found = type(error)(f"{self.program.name}, block ({place}): {error}: {text}")
                found.at = at
                raise found from error
            at += 1
        return at, "", mask, None


def merged(paths, num_threads):
    """One path for each instruction at which threads are, the first instruction last."""
    masks = {}
    for at, mask in paths:
        masks[at] = mask if at not in masks else masks[at] | mask
    return [
        (at, None if mask is None or mask.all() else mask) for at, mask in sorted(masks.items(), reverse=True)
    ]


def number_of(mask):
    """How many threads a mask has; None for all."""
    return None if mask is None else int(np.count_nonzero(mask))


def is_shared(instruction):
    return bool({"shared", "shared::cta"} & set(instruction.opcode))


class Code(NamedTuple):
    """An instruction, ready to be executed.

    Attributes:
        execute: a function of a block and a mask (None for all threads); of a branch its target.
        kind: "" for what goes on with the next instruction, else "bra", "bar" or "ret".
        predicate: as in `Instruction`.
        negated: as in `Instruction`.
    """

    execute: Any
    kind: str
    predicate: str
    negated: bool


def decode(instruction, program):
    """The code of an instruction; one that is not modelled is refused with its text."""
    name, ends = instruction.opcode[0], (instruction.predicate, instruction.negated)
    try:
        if name == "bra":
            return Code(program.labels[instruction.operands[0]], "bra", *ends)
        if name == "ret":
            return Code(None, "ret", *ends)
        if instruction.opcode[:2] == ("bar", "sync"):
            if instruction.operands != ("0",):
                raise ExecutionError("is a barrier of some threads only")
            return Code(None, "bar", *ends)
        return Code(_operation(instruction, program), "", *ends)
    except ExecutionError as error:
        raise ExecutionError(f"{program.name}: {error}: {instruction.text}") from error


def _operation(instruction, program):
    name = instruction.opcode[0]
    if name == "mov" and instruction.operands[0].startswith("{"):
        return take_apart(instruction, program)
    if name in COMPUTING:
        compute, target = COMPUTING[name](instruction, program), instruction.operands[0]
        if name not in WHOLE_WARPS:
            return lambda block, mask: block.put(target, compute(block), mask)

        def execute(block, mask):
            check_whole_warps(mask)
            block.put(target, compute(block), mask)

        return execute
    if name in OPERATIONS:
        return OPERATIONS[name](instruction, program)
    raise ExecutionError("is not modelled")


def take_apart(instruction, program):
    """`mov.b32 {%a, %b}, %r`: the first register gets the lowest bits."""
    type_, names = instruction.opcode[-1], parts(instruction.operands[0][1:-1])
    value, width = reader(program, instruction.operands[1], type_), WIDTHS[type_] // len(names)

    def execute(block, mask):
        bits = value(block)
        for i, name in enumerate(names):
            block.put(name, (bits >> bits.dtype.type(i * width)).astype(UNSIGNED[width]), mask)

    return execute


def product(instruction, program):
    compute, names = matrix_product(instruction, program), parts(instruction.operands[0].strip("{} "))

    def execute(block, mask):
        check_whole_warps(mask)
        for name, value in zip(names, compute(block), strict=True):
            block.put(name, value, mask)

    return execute


def address(text, program, is_shared):
    """A function of a block: the addresses of all threads, of `[%rd1 + 8]` or `[global_smem+8]`."""
    match = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
    if match is None:
        raise ExecutionError(f"the address {text} is not modelled")
    type_ = "u32" if is_shared else "u64"
    base, offset = reader(program, match[1], type_), immediate(match[2] or "0", type_)
    if is_shared:
        return lambda block: (of_all(base(block), block) + offset).astype(np.int64)
    return lambda block: base(block) + offset


def chosen(values, mask):
    return values if mask is None else values[mask]


def place_of(block, addresses, shared, mask):
    """Region, offsets and warps of the threads of a mask."""
    addresses, warps = chosen(addresses, mask), chosen(block.warps, mask)
    return (block.shared, addresses, warps) if shared else (*block.machine.memory.find(addresses), warps)


def spread(values, mask, num_threads):
    """Values of the threads of a mask as those of all threads."""
    if mask is None:
        return values
    wide = np.zeros(num_threads, values.dtype)
    wide[mask] = values
    return wide


VECTORS = {"v2": 2, "v4": 4}
PLAIN_ACCESS = ("global", "shared", "shared::cta", "cg", *VECTORS)


def load(instruction, program):
    type_ = instruction.opcode[-1]
    if "param" in instruction.opcode:
        return load_parameter(instruction, program)
    if instruction.opcode[1:3] == ("global", "gpu"):
        return load_atomically(instruction, program)
    allow(instruction, *PLAIN_ACCESS)
    names, size = parts(instruction.operands[0].strip("{} ")), WIDTHS[type_] // 8
    shared = is_shared(instruction)
    places = address(instruction.operands[1], program, shared)
    if len(names) != next((VECTORS[part] for part in instruction.opcode if part in VECTORS), 1):
        raise ExecutionError("has another number of registers than its name says")

    def execute(block, mask):
        region, offsets, warps = place_of(block, places(block), shared, mask)
        values = region.load(offsets, size, len(names), warps)
        for name, value in zip(names, values.T, strict=True):
            value = value.view(np.dtype(f"i{size}")) if type_[0] == "s" else np.ascontiguousarray(value)
            block.put(name, spread(value, mask, block.num_threads), mask)

    return execute


def load_atomically(instruction, program):
    """What an atomic of another block has left; with acquire also what that block had stored before it."""
    name, type_ = instruction.operands[0].strip("{} "), instruction.opcode[-1]
    allow(instruction, "global", "gpu", "acquire", "relaxed")
    places, size = address(instruction.operands[1], program, False), WIDTHS[type_] // 8
    acquires = "acquire" in instruction.opcode

    def execute(block, mask):
        addresses, found = places(block), np.zeros(block.num_threads, UNSIGNED[8 * size])
        for thread in range(block.num_threads) if mask is None else np.flatnonzero(mask):
            region, offset = block.machine.memory.find(addresses[thread : thread + 1])
            warp = int(block.warps[thread])
            found[thread] = region.atomic(offset, size, lambda old: old, warp, acquires, releases=False)
        block.put(name, found, mask)

    return execute


def load_parameter(instruction, program):
    type_, match = instruction.opcode[-1], re.fullmatch(r"\[([\w$]+)\]", instruction.operands[1])
    allow(instruction, "param")
    if match is None:
        raise ExecutionError("is not modelled in this form")

    def execute(block, mask):
        value = block.machine.parameters[match[1]]
        value = value.view(np.dtype(f"i{value.dtype.itemsize}")) if type_[0] == "s" else value
        if 8 * value.dtype.itemsize != WIDTHS[type_]:
            raise ExecutionError(f"parameter has {value.dtype.itemsize} bytes")
        block.put(instruction.operands[0], np.full(block.num_threads, value), mask)

    return execute


def store(instruction, program):
    allow(instruction, *PLAIN_ACCESS)
    shared = is_shared(instruction)
    places, width = address(instruction.operands[0], program, shared), WIDTHS[instruction.opcode[-1]]
    values = [reader(program, name, f"b{width}") for name in parts(instruction.operands[1].strip("{} "))]

    def execute(block, mask):
        columns = [chosen(of_all(value(block), block), mask) for value in values]
        region, offsets, warps = place_of(block, places(block), shared, mask)
        region.store(offsets, np.stack(columns, 1), warps)

    return execute


ATOMICS = {"add": lambda x, y: x + y, "max": max, "min": min, "exch": lambda _, y: y}


def atomic(instruction, program):
    """`atom` and `red`, thread after thread in a random order."""
    kind, type_ = instruction.opcode[-2:]
    allow(instruction, "global", "gpu", "relaxed", "acquire", "release", "acq_rel", kind)
    if kind not in ATOMICS or WIDTHS[type_] < 32:
        raise ExecutionError("is not modelled")
    returns = instruction.opcode[0] == "atom"
    at, operand = instruction.operands[1:] if returns else instruction.operands
    places, value, size = address(at, program, False), reader(program, operand, type_), WIDTHS[type_] // 8
    acquires = bool({"acquire", "acq_rel"} & set(instruction.opcode))
    releases = bool({"release", "acq_rel"} & set(instruction.opcode))

    def execute(block, mask):
        addresses, values = places(block), of_all(value(block), block)
        threads = list(range(block.num_threads) if mask is None else np.flatnonzero(mask))
        block.machine.random.shuffle(threads)
        before = np.zeros(block.num_threads, values.dtype)
        for thread in threads:
            region, offset = block.machine.memory.find(addresses[thread : thread + 1])
            before[thread] = region.atomic(
                offset,
                size,
                lambda old, new=values[thread]: ATOMICS[kind](old.view(new.dtype), new).view(old.dtype),
                int(block.warps[thread]),
                acquires,
                releases,
            ).view(values.dtype)
        if returns:
            block.put(instruction.operands[0], before, mask)

    return execute


def asynchronous_copy(instruction, program):
    """`cp.async`: to shared memory, beside the threads; zeros beyond the bytes that are there."""
    rest = instruction.opcode[2:]
    if rest == ("commit_group",) or rest == ("wait_group",):
        pending = int(instruction.operands[0], 0) if rest == ("wait_group",) else None

        def execute(block, mask):
            if mask is not None:
                raise ExecutionError("is modelled for all threads at once")
            if pending is None:
                block.copies.append([])
            else:
                block.wait_for_copies(pending)

        return execute
    if rest not in {("ca", "shared", "global"), ("cg", "shared", "global")}:
        raise ExecutionError("is not modelled")
    targets, sources = (
        address(instruction.operands[0], program, True),
        address(instruction.operands[1], program, False),
    )
    size = int(instruction.operands[2], 0)
    filled = reader(program, instruction.operands[3] if len(instruction.operands) > 3 else str(size), "u32")

    def issue(block, mask):
        count = chosen(of_all(filled(block), block), mask).astype(np.int64)
        target, warps = chosen(targets(block), mask), chosen(block.warps, mask)
        source, offsets = None, np.zeros(len(target), np.int64)
        if count.any():
            source, read = block.machine.memory.find(chosen(sources(block), mask)[count > 0])
            if (count[count > 0] != size).any():
                raise ExecutionError("is modelled for whole copies and none")
            source.check_read(read, size, warps[count > 0])
            offsets[count > 0] = read
        block.shared.begin_copy(target, size, warps)
        copy = Copy(block.shared, source, target, offsets, count, size, warps)
        block.copies[-1].append(copy)
        if block.machine.random.random() < 0.25:
            copy.land()

    return issue


def load_matrices(instruction, program):
    """`ldmatrix`: 8 x 8 matrices of 16 bits, a row of 16 bytes at the address of each thread."""
    num_matrices, is_transposed = int(instruction.opcode[4][1:]), "trans" in instruction.opcode
    allow(instruction, "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared")
    names, rows = parts(instruction.operands[0].strip("{} ")), address(instruction.operands[1], program, True)

    def execute(block, mask):
        check_whole_warps(mask)
        own = chosen(rows(block), mask).reshape(-1, 32)[:, : 8 * num_matrices]
        warps = chosen(block.warps, mask).reshape(-1, 32)[:, : 8 * num_matrices]
        words = block.shared.load(own.ravel(), 2, 8, warps.ravel()).reshape(-1, num_matrices, 8, 8)
        words = np.ascontiguousarray(words.swapaxes(2, 3) if is_transposed else words)
        pairs = words.view(np.uint32).reshape(-1, num_matrices, 32)
        for i, name in enumerate(names):
            block.put(name, spread(np.ascontiguousarray(pairs[:, i]).ravel(), mask, block.num_threads), mask)

    return execute


def warp_barrier(instruction, _):
    """Within a warp instructions are taken to be executed together."""
    if instruction.opcode != ("bar", "warp", "sync") or instruction.operands != ("-1",):
        raise ExecutionError("is not modelled")
    return lambda block, mask: check_whole_warps(mask)


OPERATIONS = {
    "ld": load,
    "st": store,
    "atom": atomic,
    "red": atomic,
    "cp": asynchronous_copy,
    "ldmatrix": load_matrices,
    "mma": product,
    "bar": warp_barrier,
    "wgmma": warpgroup,
    "fence": fence,
    "stmatrix": lambda instruction, program: store_matrices(instruction, program, address),
}
"""Instructions that do more than to set one register."""
