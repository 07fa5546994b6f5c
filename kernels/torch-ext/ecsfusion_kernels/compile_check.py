"""Compile every kernel in every configuration that its launcher can choose, for real GPUs, without one.

    python -m ecsfusion_kernels.compile_check [--kernel NAME ...] [--jobs N]

Prints registers, spills and shared memory per kernel and architecture; the exit status is 0 only if everything
compiles, no thread spills more than 64 bytes, and no block needs more shared memory than the architecture has.
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
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from .language import options

KERNEL_FILES = (
    "project",
    "seed",
    "kmeans",
    "histogram",
    "poisson",
    "principal",
    "loglinear",
    "certificate",
    "broja",
    "random",
)
SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes that one block may have, by architecture
MAX_SPILLS = 64  # bytes per thread


class Report(NamedTuple):
    """What the compiler made of one variant for one architecture."""

    kernel: str
    configuration: str
    architecture: int
    registers: int = 0
    spills: int = 0  # bytes per thread of local memory
    shared: int = 0  # bytes per block
    error: str = ""

    @property
    def problem(self) -> str:
        """What is wrong with it, or nothing."""
        if self.error:
            return self.error
        if self.spills > MAX_SPILLS:
            return f"spills {self.spills} bytes, over {MAX_SPILLS}"
        most = SHARED_MEMORY[self.architecture]
        return f"needs {self.shared} bytes of shared memory, over {most}" if self.shared > most else ""


def modules() -> list[Any]:
    """The kernel files, each with its `variants()`."""
    # By name: the functions of the package are called like their files.
    return [import_module(f"{__package__}.{name}") for name in KERNEL_FILES]


def check(index: int, architecture: int) -> Report:
    """Compile the variant of this index (in the order of `modules`)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant = [variant for module in modules() for variant in module.variants()][index]
    arguments = variant.kernel.arg_names
    signature = {name: variant.types.get(name, "constexpr") for name in arguments}
    aligned = [
        name
        for name in arguments
        if (signature[name].startswith("*") or "stride" in name) and name not in variant.unaligned
    ]
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs=variant.constants,
        attrs={(arguments.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    types = [variant.types[name].strip("*") for name in arguments if name in variant.types]
    told = [types[0], *(f"{name} {value}" for name, value in variant.constants.items())]
    told += [f"unaligned {', '.join(variant.unaligned)}"] * bool(variant.unaligned)
    report = Report(variant.kernel.__name__.strip("_"), ", ".join(told), architecture)
    target = GPUTarget("cuda", architecture, 32)
    try:
        compiled = triton.compile(
            source, target=target, options=options(variant.num_warps, variant.num_stages)
        )
        registers, spills = _resources(compiled.asm["cubin"])
    except Exception as error:  # every failure of the compiler is a finding
        return report._replace(error=f"{type(error).__name__}: {error}".strip()[:2000])
    return report._replace(registers=registers, spills=spills, shared=compiled.metadata.shared)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes per thread on the stack, which is where spills go."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(  # noqa: S603
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    if found is None:
        raise RuntimeError(f"cuobjdump reported no registers: {told}")
    return int(found[1]), int(found[2])


def check_all(names: Iterable[str] = (), jobs: int | None = None) -> list[Report]:
    """Reports on all variants (or those of the kernels named) for all architectures."""
    variants = [variant for module in modules() for variant in module.variants()]
    names = set(names)
    tasks = [
        (index, architecture)
        for index, variant in enumerate(variants)
        if not names or variant.kernel.__name__.strip("_") in names
        for architecture in SHARED_MEMORY
    ]
    # Processes of their own: the compiler holds the lock of the interpreter.
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(check, *zip(*tasks, strict=True))) if tasks else []


def table(reports: list[Report]) -> str:
    """The reports of each kernel, one line per configuration: registers/spills/shared memory by architecture."""
    rows: dict[tuple[str, str], dict[int, Report]] = {}
    for report in reports:
        rows.setdefault((report.kernel, report.configuration), {})[report.architecture] = report
    width = max((len(f"{kernel}  {told}") for kernel, told in rows), default=0)
    header = "".join(f"  {f'sm_{architecture}':>18}" for architecture in SHARED_MEMORY)
    lines = [f"{'registers / spilled bytes / shared bytes':<{width}}{header}"]
    for (kernel, told), by_architecture in rows.items():
        cells = []
        for report in by_architecture.values():
            numbers = "failed" if report.error else f"{report.registers} / {report.spills} / {report.shared}"
            cells.append(f"  {numbers:>18}")
        lines.append(f"{f'{kernel}  {told}':<{width}}{''.join(cells)}")
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
