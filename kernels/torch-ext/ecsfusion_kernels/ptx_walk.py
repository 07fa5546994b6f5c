"""One warp's way through compiled code: the instructions of each loop, what they keep busy, and how long they wait.

Integers that follow from the arguments of a launch are computed, so loops over shapes run as often as on the device.
What comes from memory or is no integer is unknown. A branch on it is decided so: one that leaves a loop stays for as
many passes as `trips` says (1 without), any other takes the shorter way, past what is for rare values. The first warp
of the first block is walked; all others are taken to do the same.
"""

from __future__ import annotations

import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .ptx import Instruction, Program

POINTER = 40
"""Parameter number i points to i + 1 times 2^40, so that an address tells whose it is."""
MAX_STEPS = 2_000_000
LATENCY = {
    "default": 5, "shared": 30, "shuffle": 25, "barrier": 25, "special": 25, "divide": 45, "fp64": 10,
    "divide64": 250, "tensor": 35, "convert": 8, "wait": 100,
}  # fmt: skip
"""Cycles from the issue of an instruction to its result, rounded from published microbenchmarks of A100 and H100; loads
from global memory are the device's."""


class Work(NamedTuple):
    """What one warp does.

    Attributes:
        instructions: that it executes.
        busy: cycles of each unit of its quarter of a multiprocessor: "issue", "memory", "special", "fp64", "tensor".
        cycles: from its first instruction to its last, if no other warp is in its way.
        atomics: to global memory.
        loops: instructions by label of the innermost loop; "" for those in none.
    """

    instructions: int
    busy: dict[str, float]
    cycles: float
    atomics: int
    loops: dict[str, int]


@dataclass(frozen=True, eq=False)
class Rates:
    """Cycles that an architecture takes.

    Attributes:
        load: from a load from global memory to its value.
        fp64: of a quarter, for one float64 instruction of a warp.
        tensor: products of two numbers of a type that a quarter adds up per cycle.
    """

    load: float
    fp64: float
    tensor: Mapping[str, float]


def _unit(opcode: tuple[str, ...], rates: Rates) -> tuple[str, float, float]:
    """The unit beside the scheduler that an instruction keeps busy, for how many cycles, and its latency.

    A multiprocessor loads or shuffles for one warp a cycle, so a quarter takes 4 cycles; 16 special functions a cycle.
    """
    name, is_double = opcode[0], "f64" in opcode
    words = next((int(part[1:]) for part in opcode if part in ("v2", "v4", "x2", "x4")), 1)
    words *= 2 if opcode[-1] in ("b64", "f64", "u64") else 1
    if name in ("mma", "wgmma", "tcgen05") and (shape := re.search(r"m(\d+)n(\d+)k(\d+)", ".".join(opcode))):
        products = int(shape[1]) * int(shape[2]) * int(shape[3]) / (4 if name == "wgmma" else 1)
        type_ = next((part for part in opcode if part in rates.tensor), "bf16")
        cycles = products / rates.tensor[type_]
        return "tensor", cycles, LATENCY["tensor"] + cycles
    if name in ("ld", "st", "atom", "red", "ldmatrix", "stmatrix", "cp"):
        if "param" in opcode or opcode[1:3] in (("async", "commit_group"), ("async", "wait_group")):
            return "", 0.0, 0.0
        is_shared = "shared" in opcode or name.endswith("matrix") or opcode[1].startswith("shared")
        is_global = "global" in opcode or name in ("atom", "cp")
        return (
            "memory",
            4.0 * words,
            rates.load if is_global else LATENCY["shared" if is_shared else "default"],
        )
    if name in ("shfl", "redux"):
        return "memory", 4.0, LATENCY["shuffle"]
    if is_double and name in ("div", "sqrt", "rcp"):
        return "fp64", 10 * rates.fp64, LATENCY["divide64"]
    if is_double and name not in ("mov", "selp", "ld", "st"):
        return "fp64", rates.fp64, LATENCY["fp64"]
    if name == "mbarrier":
        return "", 0.0, LATENCY["wait"]
    if name in ("div", "sqrt") or (name == "rem"):
        return "special", 8.0, LATENCY["divide"]
    if name in ("ex2", "lg2", "rcp", "rsqrt", "sin", "cos", "tanh"):
        return "special", 8.0, LATENCY["special"]
    return "", 0.0, LATENCY["convert" if name == "cvt" else "default"]


def _width(opcode: tuple[str, ...]) -> int:
    """Bits of the type of an instruction, its last part."""
    digits = re.search(r"(\d+)$", opcode[-1])
    return int(digits[1]) if digits else 1


INTEGERS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "and": operator.and_, "or": operator.or_,
    "xor": operator.xor, "shl": operator.lshift, "shr": operator.rshift, "min": min, "max": max,
}  # fmt: skip
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge, "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip


def _result(opcode: tuple[str, ...], values: Sequence[int | None]) -> int | None:
    """The integer that an instruction gives, without a sign; None where it is unknown."""
    name, type_, width = opcode[0], opcode[-1], _width(opcode)
    if (type_[0] == "f" and name != "mov") or "bf16" in type_:
        return None
    if name in ("and", "or") and None in values:
        # One known side may decide.
        decides = 0 if name == "and" else (1 << width) - 1
        return decides if decides in values else None
    if name == "selp":
        return None if values[2] is None else values[0 if values[2] else 1]
    if None in values:
        return None
    known = [value if value is not None else 0 for value in values]
    if name == "cvt":
        width, source = _width(opcode[:-1]), opcode[-1]
        return None if opcode[-2][0] == "f" else _signed(known[0], source) & ((1 << width) - 1)
    if name in ("mov", "cvta"):
        return known[0]
    if name == "bfe":
        return known[0] >> known[1] & ((1 << known[2]) - 1) if type_[0] == "u" else None
    operands = [_signed(value, type_) for value in known]
    if name == "setp":
        return int(COMPARISONS[opcode[1]](*operands[:2])) if opcode[1] in COMPARISONS else None
    if name in ("div", "rem"):
        if operands[1] == 0:
            return None
        quotient = abs(operands[0]) // abs(operands[1])
        quotient = -quotient if (operands[0] < 0) != (operands[1] < 0) else quotient
        result = quotient if name == "div" else operands[0] - quotient * operands[1]
    elif name == "mad":
        result = operands[0] * operands[1] + (known[2] if "wide" in opcode else operands[2])
    elif name == "shl" and known[1] >= width:
        result = 0
    elif name in ("neg", "not", "abs"):
        result = {"neg": -operands[0], "not": ~operands[0], "abs": abs(operands[0])}[name]
    elif name in INTEGERS and "hi" not in opcode:
        shift = name in ("shl", "shr")
        result = INTEGERS[name](operands[0], min(known[1], 64) if shift else operands[1])
    else:
        return None
    return int(result) & ((1 << (2 * width if "wide" in opcode else width)) - 1)


def _signed(value: int, type_: str) -> int:
    width = int(type_[1:]) if type_[1:].isdigit() else 1
    return value - (1 << width) if type_[0] == "s" and value >> (width - 1) & 1 else value


class _Step(NamedTuple):
    """An instruction as the walk needs it: what it reads and writes, which unit it needs, and its loop."""

    instruction: Instruction
    targets: list[str]
    sources: list[str]
    unit: str
    busy: float
    latency: float
    loop: str
    bounds: tuple[int, int] | None
    depth: int


def _steps(program: Program, rates: Rates) -> list[_Step]:
    loops, steps = program.loops(), []
    for place, instruction in enumerate(program.instructions):
        around = [(last - first, name) for name, (first, last) in loops.items() if first <= place <= last]
        inner = min(around)[1] if around else ""
        writes = instruction.opcode[0] not in ("st", "red", "bar", "bra", "cp", "ret", "stmatrix", "fence")
        names = [re.findall(r"%[\w.]+", operand) for operand in instruction.operands]
        targets = names[0] if writes and names else []
        sources = [name for part in names[1 if writes else 0 :] for name in part]
        if instruction.opcode[0] in ("wgmma", "tcgen05"):
            # The sums are among the operands.
            sources = sources + targets
        if instruction.predicate:
            sources = [*sources, instruction.predicate]
        unit = _unit(instruction.opcode, rates)
        steps.append(_Step(instruction, targets, sources, *unit, inner, loops.get(inner), len(around)))
    return steps


def _remaining(program: Program) -> list[int]:
    """The fewest instructions from each one to the end, each loop once."""
    count = len(program.instructions)
    remaining = [0] * (count + 1)
    for place in reversed(range(count)):
        instruction = program.instructions[place]
        following = remaining[place + 1]
        if instruction.opcode[0] == "ret" and not instruction.predicate:
            following = 0
        elif instruction.opcode[0] == "bra":
            target = program.labels[instruction.operands[0]]
            if not instruction.predicate:
                following = remaining[target] if target > place else 0
            elif target > place:
                following = min(remaining[target], following)
        remaining[place] = 1 + following
    return remaining


def walk(
    program: Program,
    parameters: Sequence[int | None],
    rates: Rates,
    trips: Sequence[int] = (),
    memory: Mapping[int, int] | None = None,
) -> Work:
    """Follow one warp.

    Args:
        program: the kernel.
        parameters: its integers in order; None for a pointer and for a number that is no integer.
        rates: of the architecture.
        trips: passes of a loop that only values end: of an outermost loop, and of one inside another.
        memory: what loads through a pointer give, by the number of the parameter; others are unknown.

    Raises:
        RuntimeError: if two million instructions do not reach the end.
    """
    steps, remaining, memory = _steps(program, rates), _remaining(program), memory or {}
    values: dict[str, int | None] = {"%tid.x": 0, "%ctaid.x": 0, "%ctaid.y": 0, "%ctaid.z": 0, "%laneid": 0}
    ready: dict[str, float] = {}
    free: dict[str, float] = defaultdict(float)
    busy: dict[str, float] = defaultdict(float)
    loops, stays = Counter[str](), Counter[int]()
    copies: list[float] = []
    copied: float = 0.0
    begin: float = 0.0
    end: float = 0.0
    executed = atomics = place = 0
    while place < len(steps):
        step = steps[place]
        instruction, opcode = step.instruction, step.instruction.opcode
        executed += 1
        if executed > MAX_STEPS:
            raise RuntimeError(f"the walk did not end after {MAX_STEPS} instructions")
        switch: int | None = 1
        if instruction.predicate:
            switch = values.get(instruction.predicate)
            switch = switch if switch is None else switch ^ int(instruction.negated)
        loops[step.loop] += 1
        start = max([begin, *(ready.get(name, 0.0) for name in step.sources)])
        end = max(end, start)
        following = place + 1
        if opcode[0] == "ret" and switch:
            break
        if opcode[0] == "bra":
            target = program.labels[instruction.operands[0]]
            if switch is None:
                switch = _taken(place, target, step, remaining, stays, trips, steps)
            following = target if switch else place + 1
            begin = end
        elif opcode[0] == "bar":
            begin = end = end + LATENCY["barrier"]
        elif "commit_group" in opcode:
            copies.append(copied)
        elif "wait_group" in opcode:
            pending = int(instruction.operands[-1])
            begin = end = max([end, *copies[: len(copies) - pending]])
        elif switch != 0:
            if step.unit:
                # A unit takes one instruction after another.
                start = max(start, free[step.unit])
                free[step.unit] = start + step.busy
                busy[step.unit] += step.busy
            atomics += 32 * (opcode[0] in ("red", "atom") and "global" in opcode)
            if opcode[0] in ("cp", "wgmma"):
                copied = start + step.latency
            result = None
            if opcode[:2] == ("ld", "param"):
                number = int(instruction.operands[1].strip("[] ").split("_param_")[1].split("+")[0])
                given = parameters[number] if number < len(parameters) else None
                result = given if given is not None else (number + 1) << POINTER
                result &= (1 << _width(opcode)) - 1
            elif opcode[0] == "ld":
                address = _operand(instruction.operands[1].strip("[] ").split("+")[0].strip(), values)
                result = None if address is None else memory.get((address >> POINTER) - 1)
            elif len(step.targets) == 1:
                result = _result(opcode, [_operand(text, values) for text in instruction.operands[1:]])
            for name in step.targets:
                if switch is None and result != values.get(name):
                    result = None
                values[name], ready[name] = result, start + step.latency
        place = following
    busy["issue"] = executed
    return Work(executed, dict(busy), end, atomics, dict(loops))


def _operand(text: str, values: Mapping[str, int | None]) -> int | None:
    """The value of a register or number; numbers are without a sign, 64 bits wide."""
    if text.startswith("%"):
        return values.get(text)
    try:
        return int(text, 0) & (2**64 - 1)
    except ValueError:
        return None


def _taken(
    place: int,
    target: int,
    step: _Step,
    remaining: list[int],
    stays: Counter[int],
    trips: Sequence[int],
    steps: list[_Step],
) -> bool:
    """Whether a branch on an unknown value is taken."""
    if step.bounds is not None:
        first, last = step.bounds
        jump_stays, fall_stays = first <= target <= last, place + 1 <= last
        if jump_stays != fall_stays:
            is_wait = any("try_wait" in other.instruction.opcode for other in steps[first : last + 1])
            passes = trips[min(step.depth, len(trips)) - 1] if trips and not is_wait else 1
            stays[place] += 1
            if stays[place] < passes:
                return jump_stays
            stays[place] = 0
            return not jump_stays
    return remaining[target] < remaining[place + 1] if target > place else False
