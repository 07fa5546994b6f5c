"""Compile every kernel in every configuration that its launcher can choose. No GPU is needed.

    python -m ecsfusion_kernels.compile_check [--kernel NAME ...] [--jobs N]

Prints registers, spills and shared memory per kernel and architecture; the exit status is 0 only if everything
compiles, no thread spills more than 64 bytes, no block needs more shared memory than the architecture has, and no
product is left running into the next step of a loop.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from .language import Variant, options
from .ops import modules

SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448}
"""The most bytes of shared memory that one block may have, by architecture."""
UNALIGNED_ON = 90
"""The architecture for which variants for unaligned pointers are compiled."""
MAX_SPILLS = 64
"""The most bytes that a thread may spill."""
PENDING = (
    "a product of a loop still runs while the next rows are copied, and may read them: "
    "use the result of `tl.dot` within the step"
)


class Report(NamedTuple):
    """What the compiler made of one variant for one architecture.

    Attributes:
        kernel: its name.
        configuration: the variant, in words.
        architecture: such as 90 for sm_90.
        registers: per thread.
        spills: bytes of local memory per thread.
        shared: bytes of shared memory per block.
        error: of the compiler, or why its result may be wrong; empty if there is none.
    """

    kernel: str
    configuration: str
    architecture: int
    registers: int = 0
    spills: int = 0
    shared: int = 0
    error: str = ""

    @property
    def problem(self) -> str:
        """The reason why the variant does not pass; empty if it does."""
        if self.error:
            return self.error
        if self.spills > MAX_SPILLS:
            return f"spills {self.spills} bytes, over {MAX_SPILLS}"
        limit = SHARED_MEMORY[self.architecture]
        return f"needs {self.shared} bytes of shared memory, over {limit}" if self.shared > limit else ""


def all_variants() -> list[Variant]:
    """The variants of all kernel files."""
    return [variant for module in modules() for variant in module.variants()]


def _is_aligned(variant: Variant, parameter: Any) -> bool:
    """Whether an argument is divisible by 16: a pointer or an integer that is specialized."""
    type_ = variant.types.get(parameter.name, "constexpr")
    is_specialized = (type_.startswith("*") or type_ in ("i32", "i64")) and not parameter.do_not_specialize
    return is_specialized and parameter.name not in variant.unaligned


def compile_variant(variant: Variant, architecture: int) -> Any:
    """What Triton compiles a variant to: `asm`, with "ptx" and "cubin", and `metadata.shared`, in bytes.

    Args:
        variant: of a kernel file.
        architecture: such as 90 for sm_90.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = variant.kernel.arg_names
    signature = {name: variant.types.get(name, "constexpr") for name in arguments}
    aligned = [parameter.name for parameter in variant.kernel.params if _is_aligned(variant, parameter)]
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs=variant.constants,
        attrs={(arguments.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=options(variant.num_warps, variant.num_stages))


def check(index: int, architecture: int) -> Report:
    """Compile one variant.

    Args:
        index: its place in `all_variants`.
        architecture: such as 90 for sm_90.
    """
    variant = all_variants()[index]
    types = [variant.types[name].strip("*") for name in variant.kernel.arg_names if name in variant.types]
    description = [types[0], *(f"{name} {value}" for name, value in variant.constants.items())]
    description += [f"unaligned {', '.join(variant.unaligned)}"] * bool(variant.unaligned)
    report = Report(variant.kernel.__name__.strip("_"), ", ".join(description), architecture)
    try:
        compiled = compile_variant(variant, architecture)
        registers, spills = resources(compiled.asm["cubin"])
    except Exception as error:
        # Every failure of the compiler is reported.
        return report._replace(error=f"{type(error).__name__}: {error}".strip()[:2000])
    is_pending = re.search(r"warp_group_dot_wait .*pendings = [1-9]", compiled.asm["ttgir"])
    return report._replace(
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        error=PENDING if is_pending else "",
    )


def disassembled(cubin: bytes, option: str) -> str:
    """What the cuobjdump that comes with Triton prints of compiled code with this option."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(  # noqa: S603
            [tool, option, file.name], capture_output=True, text=True, check=True
        ).stdout


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes per thread on the stack, which is where spills go."""
    output = disassembled(cubin, "-res-usage")
    match = re.search(r"REG:(\d+) STACK:(\d+)", output)
    if match is None:
        raise RuntimeError(f"cuobjdump reported no registers: {output}")
    return int(match[1]), int(match[2])


def architectures_of(variant: Variant) -> list[int]:
    """All architectures; of a variant for unaligned pointers, whose loads are narrower everywhere, one."""
    return [UNALIGNED_ON] if variant.unaligned else list(SHARED_MEMORY)


def check_all(names: Iterable[str] = (), jobs: int | None = None) -> list[Report]:
    """Compile the variants for their architectures.

    Args:
        names: only the kernels of these names; empty for all.
        jobs: processes; None for as many as there are cores.
    """
    variants = all_variants()
    names = set(names)
    tasks = [
        (index, architecture)
        for index, variant in enumerate(variants)
        if not names or variant.kernel.__name__.strip("_") in names
        for architecture in architectures_of(variant)
    ]
    # Processes, not threads: the compiler holds Python's global lock.
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(check, *zip(*tasks, strict=True))) if tasks else []


def table(reports: list[Report]) -> str:
    """The reports of each kernel, one line per configuration: registers/spills/shared memory by architecture."""
    rows: dict[tuple[str, str], dict[int, Report]] = {}
    for report in reports:
        rows.setdefault((report.kernel, report.configuration), {})[report.architecture] = report
    width = max((len(f"{kernel}  {configuration}") for kernel, configuration in rows), default=0)
    header = "".join(f"  {f'sm_{architecture}':>18}" for architecture in SHARED_MEMORY)
    lines = [f"{'registers / spilled bytes / shared bytes':<{width}}{header}"]
    for (kernel, configuration), by_architecture in rows.items():
        cells = []
        for architecture in SHARED_MEMORY:
            found = by_architecture.get(architecture)
            numbers = "-"
            if found is not None:
                numbers = "failed" if found.error else f"{found.registers} / {found.spills} / {found.shared}"
            cells.append(f"  {numbers:>18}")
        lines.append(f"{f'{kernel}  {configuration}':<{width}}{''.join(cells)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compile, print the table, and return the exit status."""
    parser = argparse.ArgumentParser("ecsfusion_kernels.compile_check", description=__doc__.split("\n")[0])
    parser.add_argument("--kernel", nargs="*", default=(), help="only the kernels of these names")
    parser.add_argument("--jobs", type=int, help="processes; as many as there are cores by default")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is 1: the interpreter compiles nothing; unset it")
    try:
        import triton
    except ImportError:
        parser.error("Triton is not installed; pip install triton")
    reports = check_all(chosen.kernel, chosen.jobs)
    if not reports:
        parser.error(f"no kernel is called {', '.join(chosen.kernel)}")
    print(table(reports))
    problems = [report for report in reports if report.problem]
    for report in problems:
        print(f"\n{report.kernel}, {report.configuration}, sm_{report.architecture}: {report.problem}")
    print(f"\n{len(reports)} compilations with Triton {triton.__version__}, {len(problems)} with a problem")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
