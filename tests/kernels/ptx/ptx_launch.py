"""Launches of the ops, compiled for sm_80 or sm_90 and executed by `ptx_machine` in the place of a GPU."""

import contextlib
import functools
import sys
from typing import NamedTuple

import torch
from ecsfusion_kernels import ops
from ecsfusion_kernels.language import options
from ecsfusion_kernels.ptx import parse
from ptx_machine import Machine
from uninitialized import filled

TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


class Compilation(NamedTuple):
    """What Triton would compile for a launch.

    Attributes:
        kernel: the function under `@jit`.
        types: Triton's type of each run-time argument.
        constants: the value of each `tl.constexpr`.
        aligned: the arguments that are divisible by 16.
        num_warps: as in a launch.
        num_stages: as in a launch.
    """

    kernel: object
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int


def variant_compilations():
    """The compilations that `variants()` of the kernel files say there are."""
    return {of_variant(variant): variant for module in ops.modules() for variant in module.variants()}


def of_variant(variant):
    types = {name: variant.types[name] for name in variant.kernel.arg_names if name in variant.types}
    specialized = {
        parameter.name
        for parameter in variant.kernel.params
        if not parameter.do_not_specialize
        and (types.get(parameter.name, "").startswith("*") or types.get(parameter.name) in ("i32", "i64"))
    }
    return compilation(
        variant.kernel,
        types,
        variant.constants,
        specialized - {*variant.unaligned},
        variant.num_warps,
        variant.num_stages,
    )


def of_launch(kernel, values, num_warps, num_stages):
    """The compilation of a launch with these arguments (by name), by the rules of `triton.jit`."""
    types, constants, aligned = {}, {}, set()
    for parameter in kernel.params:
        value = values[parameter.name]
        if parameter.is_constexpr:
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            types[parameter.name] = f"*{TYPES[value.dtype]}"
            if value.data_ptr() % 16 == 0 and not parameter.do_not_specialize:
                aligned.add(parameter.name)
        elif isinstance(value, float):
            types[parameter.name] = parameter.annotation_type or "fp32"
        else:
            types[parameter.name] = parameter.annotation_type or "i32"
            if not parameter.do_not_specialize:
                if value == 1:
                    raise NotImplementedError(
                        f"{kernel.__name__}: Triton compiles {parameter.name} = 1 as a constant"
                    )
                if value % 16 == 0:
                    aligned.add(parameter.name)
    return compilation(kernel, types, constants, aligned, num_warps, num_stages)


def compilation(kernel, types, constants, aligned, num_warps, num_stages):
    return Compilation(
        kernel,
        tuple(types.items()),
        tuple(sorted(constants.items())),
        tuple(sorted(aligned)),
        num_warps,
        num_stages,
    )


@functools.cache
def compiled(compilation, architecture):
    """PTX and bytes of shared memory. Triton keeps what it compiled, as it does for `compile_check`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types = compilation.kernel, dict(compilation.types)
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=dict(compilation.constants),
        attrs={
            (names.index(name),): [["tt.divisibility", 16]] for name in names if name in compilation.aligned
        },
    )
    result = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options=options(compilation.num_warps, compilation.num_stages),
    )
    return result.asm["ptx"], result.metadata.shared


@functools.cache
def machine(ptx, num_warps, shared_bytes, races):
    """A machine keeps the instructions that it has decoded."""
    return Machine(parse(ptx), num_warps, shared_bytes, races)


class Kernel:
    """Stands in the place of a function under `@jit`: `kernel[grid](...)` executes.

    Args:
        kernel: that function.
        launches: a list that gets the compilation of each launch.
        change: called with name and PTX, returns the PTX to execute; None leaves out the execution.
        races: as in `Machine`.
        architecture: 80 or 90.
    """

    def __init__(self, kernel, launches, change, races, architecture):
        self.kernel, self.launches, self.change, self.races = kernel, launches, change, races
        self.architecture = architecture

    def __getitem__(self, grid):
        return functools.partial(self._launch, grid)

    def _launch(
        self,
        grid,
        *arguments,
        num_warps,
        num_stages,
        enable_fp_fusion,
        launch_cooperative_grid=False,
        **constants,
    ):
        assert enable_fp_fusion == options(num_warps, num_stages)["enable_fp_fusion"]
        values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | constants
        this = of_launch(self.kernel, values, num_warps, num_stages)
        self.launches.append(this)
        if self.change is not None:
            ptx, shared_bytes = compiled(this, self.architecture)
            ptx = self.change(self.kernel.__name__, ptx)
            run_time = [
                float(values[name]) if type_.startswith("fp") else values[name] for name, type_ in this.types
            ]
            this_machine = machine(ptx, num_warps, shared_bytes, self.races)
            this_machine.launch(grid, run_time, len(self.launches), launch_cooperative_grid)


def unchanged(_, ptx):
    return ptx


@contextlib.contextmanager
def executed(monkeypatch, change=unchanged, races=True, architecture=80):
    """Within it ops of CPU tensors launch their kernels, which are executed; gives the list of launches.

    What `torch.empty` returns is NaN or the largest integer.
    """
    kernels, launches = {variant.kernel for module in ops.modules() for variant in module.variants()}, []
    with monkeypatch.context() as patch, filled():
        # Where they are written: a file of ops may launch those of another.
        for module in {sys.modules[kernel.fn.__module__] for kernel in kernels}:
            for name, value in list(vars(module).items()):
                if isinstance(value, type(next(iter(kernels)))) and value in kernels:
                    patch.setattr(module, name, Kernel(value, launches, change, races, architecture))
        for module in ops.modules():
            if hasattr(module, "runs_kernels"):
                patch.setattr(module, "runs_kernels", lambda _: True)
            if hasattr(module, "skips_dispatch"):
                patch.setattr(module, "skips_dispatch", lambda *_: False)
        yield launches
