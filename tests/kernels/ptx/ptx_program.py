"""PTX text as a list of instructions."""

import re
from typing import NamedTuple

# Bits of a type.
WIDTHS = {
    f"{kind}{width}": width for kind in "busf" for width in (8, 16, 32, 64) if (kind, width) != ("f", 8)
} | {"bf16": 16, "pred": 1, "tf32": 32, "bf16x2": 32, "f16x2": 32}


class ExecutionError(Exception):
    """What no GPU promises to do, or what is not modelled."""

    at: int
    """The number of the instruction."""


class PartOfAWarpError(ExecutionError):
    """An instruction of whole warps, where some threads of a warp have not come."""


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        text: as it was written.
        predicate: the register that switches it on, "" for none.
        negated: whether that register switches it off instead.
        opcode: its parts between dots: ("ld", "global", "b32").
        operands: as they were written: "%r1", "[%rd2+16]", "{%r3, %r4}".
    """

    text: str
    predicate: str
    negated: bool
    opcode: tuple[str, ...]
    operands: tuple[str, ...]


class Program(NamedTuple):
    """One kernel.

    Attributes:
        name: of the kernel.
        parameters: name and bytes of each.
        registers: bits by name; 1 for predicates.
        labels: the index of the instruction that follows.
        instructions: all of them, in order.
    """

    name: str
    parameters: list[tuple[str, int]]
    registers: dict[str, int]
    labels: dict[str, int]
    instructions: list[Instruction]


def parts(text: str) -> tuple[str, ...]:
    """What commas separate, where they are not inside brackets."""
    return tuple(part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text)) if text.strip() else ()


def parse(ptx: str) -> Program:
    """Read the kernel of a PTX module as Triton's compiler writes it."""
    ptx = re.sub(r"//[^\n]*|^\s*\.(?:loc|file)\s[^\n]*", "", ptx, flags=re.MULTILINE)
    head = re.search(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{]*\{", ptx)
    if head is None:
        raise ExecutionError("the PTX has no kernel")
    parameters = [
        (name, WIDTHS[type_] // 8)
        for type_, name in re.findall(r"\.param\s+\.(\w+)[^,]*?([\w$]+)\s*(?:,|$)", head[2])
    ]
    registers: dict[str, int] = {}
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for statement in ptx[head.end() : ptx.index("\n}", head.end())].split(";"):
        # Braces around statements are scopes; the names in them are used once.
        text = " ".join(statement.split()).lstrip("{} ")
        while label := re.match(r"([\w$]+):\s*", text):
            labels[label[1]] = len(instructions)
            text = text[label.end() :].lstrip("{} ")
        if declaration := re.match(r"\.reg\s*\.(\w+)\s+(.*)", text):
            for name in parts(declaration[2]):
                several = re.fullmatch(r"(%\w+)<(\d+)>", name)
                names = [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name]
                registers |= dict.fromkeys(names, WIDTHS[declaration[1]])
        elif text and not text.startswith("."):
            match = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([\w.:]+)\s*(.*)", text)
            if match is None:
                raise ExecutionError(f"is no instruction: {text}")
            opcode = tuple(match[3].split("."))
            instructions.append(Instruction(text, match[2] or "", match[1] == "!", opcode, parts(match[4])))
    return Program(head[1], parameters, registers, labels, instructions)
