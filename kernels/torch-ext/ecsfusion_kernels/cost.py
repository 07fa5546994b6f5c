"""A model of the cost: what each kernel moves and executes, what bounds it, and a predicted time. No GPU is needed.

    python -m ecsfusion_kernels.cost [--kernel NAME ...] [--device NAME ...] [--measured FILE]

A launch is taken from the launcher, at shapes without values, and its code from the compiler; `ptx_walk` follows one
warp through that code with the arguments of the launch. The time of a launch is a fixed time for its start and end, and
the largest of

- bandwidth: all tensors of the launch once, at the share of the peak that a copy reaches;
- a unit: the cycles that the warps of the busiest multiprocessor keep its busiest unit busy (issue, memory, special
  functions, float64, tensor cores);
- latency: the way of one warp, as often as blocks follow one another on a multiprocessor;
- atomics: additions to global memory, at the rate that a histogram reached on an H200.

Every time printed is a prediction. Not in the model: what another load of the same line saves, conflicts of banks, the
order that ptxas gives instructions across a branch, rare paths (embeddings that leave float32, the last block of a sum
over blocks, bounds of the solver), the products of sm_100 (`tcgen05` says no sizes: they cost their issue), loops that
values end (`PASSES` says how often they run), and what a launch from Python costs beyond the device's own time.
`--measured benchmarks/results/kernels.jsonl` prints measured times of the same shape beside the predicted ones.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .compile_check import all_variants, compile_variant, disassembled, resources
from .cost_cases import CASES, COUNTED, Shape
from .language import Variant
from .launches import Launch
from .ptx import Program, parse
from .ptx_walk import Rates, Work, walk

START_MICROSECONDS = 2.5
"""From the end of a launch that the next one waits for to the start of its work, in a queue or a graph."""
COPY_SHARE = 0.89
"""Of the peak bandwidth; 4 274 of 4 800 GB/s on an H200 (benchmarks/results/kernels.jsonl)."""
ATOMICS_PER_CYCLE = 18.0
"""Of the whole device, to 4 000 different counts: measured on an H200, and taken for all."""
REGISTERS, THREADS, BLOCKS = 65_536, 2048, 32
"""Of one multiprocessor."""
PASSES = {
    "_broja": (50, 3),
    "_orthonormalize": (5,),
    "_directions": (5,),
    "_pool_weights": (8, 2),
    "_match_prior": (4, 2),
    "_lloyd_centers": (6, 2, 6),
}
"""Passes of the loops that values end, the outer and the inner ones: iterations and sweeps of the solver at a tolerance
of 1e-3 bits, sweeps of Jacobi's method, evaluations of a pool, rescalings, and how often a program that waits for
others looks for them, iterations of k-means (its loop goes on in three places) and the same in between. The first is
what the tables of benchmarks/bench_kernels.py need, the others are guesses."""
ACTIVE_ITERATIONS = 11
"""Of k-means, after which all problems of the probe have converged and their blocks return at once: so it is for the
embeddings of benchmarks/bench_probe.py."""


class Device(NamedTuple):
    """A GPU, by its data sheet.

    Attributes:
        name: of the product.
        architecture: such as 90 for sm_90.
        multiprocessors: how many.
        gigahertz: of the boost clock.
        gigabytes_per_second: peak of its memory.
        shared: bytes of shared memory of one multiprocessor.
        rates: cycles of what takes several.
    """

    name: str
    architecture: int
    multiprocessors: int
    gigahertz: float
    gigabytes_per_second: float
    shared: int
    rates: Rates


_AMPERE = Rates(450, 4, {"tf32": 128, "bf16": 256, "f16": 256, "f64": 16})
_HOPPER = Rates(550, 2, {"tf32": 256, "bf16": 512, "f16": 512, "f64": 32})
_BLACKWELL = Rates(600, 2, {"tf32": 512, "bf16": 1024, "f16": 1024, "f64": 16})
DEVICES = [
    Device("A100", 80, 108, 1.41, 2039, 167_936, _AMPERE),
    Device("H100", 90, 132, 1.755, 3350, 233_472, _HOPPER),
    Device("H200", 90, 132, 1.755, 4800, 233_472, _HOPPER),
    Device("B200", 100, 148, 1.85, 8000, 233_472, _BLACKWELL),
]


class Code(NamedTuple):
    """What the compiler made of a variant.

    Attributes:
        program: its PTX.
        registers: per thread.
        shared: bytes of shared memory per block.
        expansion: machine instructions of the whole kernel for one instruction of PTX.
    """

    program: Program
    registers: int
    shared: int
    expansion: float


class Prediction(NamedTuple):
    """The cost of one launch on one device.

    Attributes:
        microseconds: predicted.
        bound: what decides that: "bandwidth", "latency", "atomics", a unit, or "launch" where none takes as long.
        warps: that a multiprocessor can hold at once, of 64.
        instructions: of PTX, that all warps of the launch execute.
        work: of one warp; None for an op of PyTorch.
    """

    microseconds: float
    bound: str
    warps: int = 0
    instructions: int = 0
    work: Work | None = None


@functools.cache
def code_of(index: int, architecture: int) -> Code:
    """Compile a variant, or take it from Triton's cache.

    Args:
        index: its place in `all_variants`.
        architecture: such as 90 for sm_90.
    """
    compiled = compile_variant(_variants()[index], architecture)
    program = parse(compiled.asm["ptx"])
    registers, _ = resources(compiled.asm["cubin"])
    expansion = _machine_instructions(compiled.asm["cubin"]) / len(program.instructions)
    return Code(program, registers, compiled.metadata.shared, expansion)


def _machine_instructions(cubin: bytes) -> int:
    output = disassembled(cubin, "-sass")
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", output)
    return sum(not name.startswith("NOP") for name in names)


@functools.cache
def _variants() -> list[Variant]:
    return all_variants()


def variant_of(launch: Launch) -> int:
    """The place in `all_variants` of what Triton compiles for a launch of aligned tensors.

    Raises:
        ValueError: if no variant fits.
    """
    for index, variant in enumerate(_variants()):
        same = all(launch.arguments.get(name) == value for name, value in variant.constants.items())
        if variant.kernel is launch.kernel and not variant.unaligned and same:
            return index
    raise ValueError(f"{launch.name} has no variant for {launch.arguments}; add it to variants() of its file")


def resident_blocks(device: Device, code: Code, num_warps: int) -> int:
    """Blocks that a multiprocessor holds at once, by its registers, threads and shared memory."""
    registers = -(-code.registers // 8) * 8 * 32 * num_warps
    by_shared = device.shared // (code.shared + 1024)
    return max(1, min(REGISTERS // registers, THREADS // (32 * num_warps), by_shared, BLOCKS))


class Walked(NamedTuple):
    """What the walk of a launch starts from: launches that agree in it cost the same."""

    variant: int
    num_warps: int
    blocks: int
    bytes: int
    parameters: tuple[int | None, ...]
    memory: tuple[tuple[int, int], ...]


def _walked(launch: Launch) -> Walked:
    parameters: list[int | None] = []
    memory = []
    for parameter in launch.kernel.params:
        if parameter.is_constexpr:
            continue
        value = launch.arguments[parameter.name]
        if parameter.name == "active_ptr":
            # Each iteration's flags lie behind those of the one before.
            iteration = value.storage_offset() // max(1, value.numel())
            memory.append((len(parameters), int(iteration < ACTIVE_ITERATIONS)))
        parameters.append(value if isinstance(value, int) else None)
    number = launch.arguments["num_warps"]
    return Walked(variant_of(launch), number, launch.blocks, launch.bytes, tuple(parameters), tuple(memory))


def predict(launch: Launch, device: Device) -> Prediction:
    """The cost of a launch on a device."""
    if launch.kernel is not None:
        return _predict_kernel(_walked(launch), device)
    moved = _moved(launch.bytes, device)
    return Prediction(START_MICROSECONDS + moved, "bandwidth" if moved > START_MICROSECONDS else "launch")


def _moved(number: int, device: Device) -> float:
    """Microseconds that so many bytes take."""
    return number / (device.gigabytes_per_second * COPY_SHARE * 1e3)


@functools.cache
def _predict_kernel(walked: Walked, device: Device) -> Prediction:
    code = code_of(walked.variant, device.architecture)
    passes = PASSES.get(_variants()[walked.variant].kernel.__name__, ())
    work = walk(code.program, walked.parameters, device.rates, passes, dict(walked.memory))
    cycle = 1e-3 / device.gigahertz
    resident = resident_blocks(device, code, walked.num_warps)
    per_multiprocessor = -(-walked.blocks // device.multiprocessors)
    # A multiprocessor has four quarters, each with a scheduler and units of its own.
    warps_of_quarter = per_multiprocessor * walked.num_warps / 4
    times = {unit: warps_of_quarter * busy * cycle for unit, busy in work.busy.items()}
    times["issue"] *= code.expansion
    times["bandwidth"] = _moved(walked.bytes, device)
    times["latency"] = -(-per_multiprocessor // resident) * work.cycles * cycle
    times["atomics"] = walked.blocks * walked.num_warps * work.atomics / ATOMICS_PER_CYCLE * cycle
    bound = max(times, key=lambda name: times[name])
    return Prediction(
        START_MICROSECONDS + times[bound],
        bound if times[bound] > START_MICROSECONDS else "launch",
        resident * walked.num_warps,
        work.instructions * walked.num_warps * walked.blocks,
        work,
    )


def microseconds(found: Iterable[Launch], device: Device) -> float:
    """The predicted time of launches, one after another."""
    return sum(predict(launch, device).microseconds for launch in found)


def read_measured(path: Path) -> dict[tuple[str, str, str], float]:
    """Milliseconds by device, benchmark and shape, from lines of benchmarks/bench_kernels.py or bench_probe.py.

    Raises:
        ValueError: for a line that is no measurement.
    """
    found = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            benchmark = " ".join([line["benchmark"], *([line["way"]] if "way" in line else [])])
            found[line["device"], benchmark, json.dumps(line["shape"])] = line["milliseconds"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is no measurement ({error!r}); give a results file"
            ) from error
    return found


def report(
    name: str, shape: Shape, found: list[Launch], devices: list[Device], measured: dict[Any, float]
) -> str:
    """The lines of one case: totals, each kernel as its first device compiles it, and the times of all devices."""
    first = devices[0]
    predictions = [predict(launch, first) for launch in found]
    total = sum(launch.bytes for launch in found)
    executed = sum(prediction.instructions for prediction in predictions)
    described = ", ".join(f"{key} {value}" for key, value in shape.items())
    lines = [
        f"{name}, {described}: {len(found)} launches, {total / 1e6:.4g} MB, {executed / 1e6:.4g} million instructions"
    ]
    shown: dict[tuple[str, str], tuple[int, float, str]] = {}
    for launch, prediction in zip(found, predictions, strict=True):
        text = "PyTorch"
        if prediction.work is not None:
            code = code_of(variant_of(launch), first.architecture)
            loops = ", ".join(f"{label or 'no loop'} {n}" for label, n in prediction.work.loops.items())
            text = (
                f"{launch.blocks} blocks of {launch.arguments['num_warps']} warps, {code.registers} registers, "
                f"{code.shared} shared bytes, {prediction.warps} of 64 warps; instructions of a warp: {loops}"
            )
        key = (launch.name if prediction.work is not None else "PyTorch", text)
        count, time, _ = shown.get(key, (0, 0.0, ""))
        shown[key] = (count + 1, time + prediction.microseconds, prediction.bound)
    for (kernel, text), (count, time, bound) in shown.items():
        lines.append(
            f"    {count} x {kernel.strip('_')}, {time:.1f} us, {bound}" + f": {text}" * (text != kernel)
        )
    for device in devices:
        predicted = microseconds(found, device)
        bounds: dict[str, float] = defaultdict(float)
        for prediction in (predict(launch, device) for launch in found):
            bounds[prediction.bound] += prediction.microseconds
        line = f"  {device.name}: predicted {predicted:.1f} us, most of it {max(bounds, key=lambda b: bounds[b])}"
        time_measured = measured.get((f"NVIDIA {device.name}", name, json.dumps(shape)))
        if time_measured is not None:
            factor = 1e3 * time_measured / predicted
            line += f"; measured {1e3 * time_measured:.1f} us, {factor:.2f} times as long"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the costs, and return the exit status."""
    parser = argparse.ArgumentParser("ecsfusion_kernels.cost", description=__doc__.split("\n")[0])
    parser.add_argument("--kernel", nargs="*", help=f"only some of: {', '.join(COUNTED)}")
    parser.add_argument("--device", nargs="*", help=f"only some of: {', '.join(d.name for d in DEVICES)}")
    parser.add_argument("--measured", type=Path, help="results of benchmarks/bench_kernels.py")
    chosen = parser.parse_args(arguments)
    devices = [d for d in DEVICES if chosen.device is None or d.name in chosen.device]
    cases = [case for case in CASES if chosen.kernel is None or case[0] in chosen.kernel]
    if not devices or not cases:
        parser.error("nothing is chosen; --help says what there is")
    measured = read_measured(chosen.measured) if chosen.measured is not None else {}
    print("All times are predictions, except where one is called measured.\n")
    for name, shape in cases:
        print(report(name, shape, COUNTED[name](**shape), devices, measured), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
