"""PTX text, as Triton's compiler writes it, as a list of instructions."""

from __future__ import annotations

import re
from typing import NamedTuple

WIDTHS = {
    f"{kind}{width}": width for kind in "busf" for width in (8, 16, 32, 64) if (kind, width) != ("f", 8)
} | {"bf16": 16, "pred": 1, "tf32": 32, "bf16x2": 32, "f16x2": 32}
"""Bits of a type."""


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        text: as it was written.
        predicate: the register that switches it on, "" for none.
        negated: whether that register switches it off instead.
        opcode: its parts between dots: ("ld", "global", "b32").
        operands: as they were written: "%r1", "[%rd2+16]", "{%r3, %r4}"; a label by its name in `Program.labels`.
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

    def loops(self) -> dict[str, tuple[int, int]]:
        """First and last instruction between a label and the last branch back to it, by label."""
        found = {}
        for place, instruction in enumerate(self.instructions):
            if instruction.opcode[0] == "bra" and self.labels[instruction.operands[0]] <= place:
                found[instruction.operands[0]] = (self.labels[instruction.operands[0]], place)
        return found


def parts(text: str) -> tuple[str, ...]:
    """What commas separate, where they are not inside brackets."""
    return tuple(part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text)) if text.strip() else ()


def parse(ptx: str) -> Program:
    """Read the kernel of a PTX module.

    Raises:
        ValueError: for a text without a whole kernel, and for a statement that is no instruction.
    """
    ptx = re.sub(r"//[^\n]*|^\s*\.(?:loc|file)\s[^\n]*", "", ptx, flags=re.MULTILINE)
    head = re.search(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{]*\{", ptx)
    if head is None:
        raise ValueError("ptx has no .entry; give the text of a compiled kernel, `compiled.asm['ptx']`")
    parameters = [
        (name, WIDTHS[type_] // 8)
        for type_, name in re.findall(r"\.param\s+\.(\w+)[^,]*?([\w$]+)\s*(?:,|$)", head[2])
    ]
    registers: dict[str, int] = {}
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    # A label in a scope of inline assembly may be there again; a branch means the one before it.
    latest: dict[str, str] = {}
    for statement in _body(ptx, head.end()).split(";"):
        # Braces around statements are scopes; the registers in them are used once.
        text = " ".join(statement.split()).lstrip("{} ")
        while label := re.match(r"([\w$]+):\s*", text):
            latest[label[1]] = f"{label[1]}.{len(instructions)}" if label[1] in labels else label[1]
            labels[latest[label[1]]] = len(instructions)
            text = text[label.end() :].lstrip("{} ")
        if declaration := re.match(r"\.reg\s*\.(\w+)\s+(.*)", text):
            for name in parts(declaration[2]):
                several = re.fullmatch(r"(%\w+)<(\d+)>", name)
                names = [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name]
                registers |= dict.fromkeys(names, WIDTHS[declaration[1]])
        elif text and not text.startswith("."):
            match = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([\w.:]+)\s*(.*)", text)
            if match is None:
                raise ValueError(
                    f"ptx has {text!r}, which is no instruction; give what Triton's compiler wrote"
                )
            opcode = tuple(match[3].split("."))
            operands = tuple(latest.get(operand, operand) for operand in parts(match[4]))
            instructions.append(Instruction(text, match[2] or "", match[1] == "!", opcode, operands))
    return Program(head[1], parameters, registers, labels, instructions)


def _body(ptx: str, begin: int) -> str:
    """The text from behind an opening brace to the closing one."""
    depth = 1
    for brace in re.finditer(r"[{}]", ptx[begin:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return ptx[begin : begin + brace.start()]
    raise ValueError("ptx has no end of its kernel; give the whole text")
