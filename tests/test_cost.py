"""The model of the kernels' cost: known counts of a small program, shapes of launches, and what must not change them.

Only `_project` is compiled here, and no GPU is needed.
"""

import json
from collections import Counter

import pytest
import torch
from ecsfusion_kernels import language

if language.triton is None:
    pytest.skip("Triton exists for Linux only", allow_module_level=True)

from ecsfusion_kernels import cost, cost_cases, lloyd, nearest, project, ptx, ptx_walk, seed
from ecsfusion_kernels.compile_check import all_variants
from ecsfusion_kernels.launches import launcher_of, launches
from ecsfusion_kernels.ops import nearest as nearest_module
from ecsfusion_kernels.ops import random

from ecsfusion.pid import clusters
from ecsfusion.pid.options import EstimatorOptions

H200 = cost.DEVICES[2]
RATES = ptx_walk.Rates(load=500, fp64=2, tensor={"tf32": 256})

# 3 instructions, 4 for each pass of the loop, 3 for a flag in memory that skips two more, and the end.
SMALL = """
.visible .entry small(
	.param .u64 .ptr .global .align 1 small_param_0,
	.param .u32 small_param_1
)
.reqntid 32
{
	.reg .pred 	%p<4>;
	.reg .b32 	%r<6>;
	.loc	1 1 1
	ld.param.b64 	%rd1, [small_param_0];
	ld.param.b32 	%r1, [small_param_1]; // the number of passes
	mov.b32 	%r2, 0;
$L__BB0_1:
	add.s32 	%r2, %r2, 1;
	mul.f32 	%r3, %r3, %r4;
	setp.lt.s32 	%p1, %r2, %r1;
	@%p1 bra 	$L__BB0_1;
	ld.global.b32 	%r5, [%rd1+4];
	setp.eq.s32 	%p2, %r5, 0;
	@%p2 bra 	$L__BB0_3;
	ex2.approx.f32 	%r3, %r3;
	ex2.approx.f32 	%r3, %r3;
$L__BB0_3:
	ret;
}
"""
# The loop ends by a value.
UNKNOWN = SMALL.replace("setp.lt.s32 	%p1, %r2, %r1", "setp.lt.f32 	%p1, %r3, %r4")


def of(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def work(text=SMALL, passes=5, **options):
    return ptx_walk.walk(ptx.parse(text), [None, passes], RATES, **options)


@pytest.mark.parametrize("passes", [1, 5, 40])
def test_a_loop_over_a_shape_is_counted_as_often_as_it_runs(passes):
    found = work(passes=passes)
    assert found.loops == {"": 7, "$L__BB0_1": 4 * passes}
    assert found.instructions == 4 * passes + 7
    # The start, sum and comparison of each pass at 5 cycles, the load, and the comparison with what it gives.
    assert found.cycles == 5 + 10 * passes + 500 + 5


def test_a_branch_on_memory_is_short_unless_the_value_is_given():
    assert "special" not in work().busy
    assert "special" not in work(memory={0: 0}).busy
    # 8 cycles for each of two.
    assert work(memory={0: 1}).busy["special"] == 16


@pytest.mark.parametrize(("trips", "passes"), [((), 1), ((7,), 7)])
def test_a_loop_that_values_end_runs_as_often_as_is_assumed(trips, passes):
    assert work(UNKNOWN, trips=trips).loops["$L__BB0_1"] == 4 * passes


def test_a_walk_without_an_end_is_an_error(monkeypatch):
    monkeypatch.setattr(ptx_walk, "MAX_STEPS", 100)
    with pytest.raises(RuntimeError, match="did not end after 100"):
        work(passes=1000)


def test_a_text_without_a_kernel_is_an_error():
    with pytest.raises(ValueError, match=r"no \.entry"):
        ptx.parse(".version 8.0")
    with pytest.raises(ValueError, match="no end of its kernel"):
        ptx.parse(SMALL.rstrip("}\n"))
    with pytest.raises(ValueError, match=r"'[(]ret[)]', which is no instruction"):
        ptx.parse(SMALL.replace("ret;", "(ret);"))


def test_a_scope_of_inline_assembly_has_labels_of_its_own():
    wait = """{
\t.reg .pred complete;
waitLoop:
\tmbarrier.try_wait.parity.shared::cta.b64 complete, [%r1], %r2;
\t@!complete bra.uni waitLoop;
}
"""
    text = SMALL.replace("\tld.global.b32", wait + wait + "\tld.global.b32")
    program = ptx.parse(text)
    assert set(program.labels) == {"$L__BB0_1", "$L__BB0_3", "waitLoop", "waitLoop.9"}
    # A wait is one pass, whatever is assumed of other loops.
    assert work(text, trips=(7,)).loops == {"": 7, "$L__BB0_1": 20, "waitLoop": 2, "waitLoop.9": 2}


RESULTS = [
    ("add.s32", [2**32 - 1, 2], 1), ("sub.s32", [1, 2], 2**32 - 1), ("mul.wide.s32", [2**32 - 1, 3], 2**64 - 3),
    ("mul.lo.s32", [2**31, 2], 0), ("mad.lo.s32", [3, 4, 5], 17), ("div.s32", [2**32 - 7, 2], 2**32 - 3),
    ("rem.s32", [2**32 - 7, 2], 2**32 - 1), ("shl.b32", [1, 40], 0), ("shr.s32", [2**31, 31], 2**32 - 1),
    ("setp.lt.s32", [2**32 - 1, 0], 1), ("setp.lt.u32", [2**32 - 1, 0], 0), ("cvt.s64.s32", [2**32 - 1], 2**64 - 1),
    ("cvt.u64.u32", [2**32 - 1], 2**32 - 1), ("selp.b32", [7, 8, 0], 8), ("and.pred", [None, 0], 0),
    ("or.pred", [1, None], 1), ("and.pred", [None, 1], None), ("min.s32", [2**32 - 1, 0], 2**32 - 1),
    ("add.f32", [1, 2], None), ("div.s32", [1, 0], None), ("bfe.u32", [0b11010, 1, 3], 0b101),
]  # fmt: skip


@pytest.mark.parametrize(("opcode", "values", "result"), RESULTS)
def test_integers_are_computed_as_the_device_computes_them(opcode, values, result):
    assert ptx_walk._result(tuple(opcode.split(".")), values) == result


def test_project_moves_the_rows_once():
    rows, radius = of(100_000, 768, dtype=torch.bfloat16), of(dtype=torch.float64)
    [split, main] = launches(project, rows, of(768, 8), of(8), radius)
    rows, out, packed = 100_000 * 768 * 2, 100_000 * 8 * 4, 768 * 32 * 2
    assert (split.name, main.name) == ("_split", "_project")
    # Two vectors of 8 and the radius.
    assert main.bytes == rows + out + packed + 2 * 8 * 4 + 8


def test_shared_rows_and_views_of_one_memory_are_moved_once():
    found = launches(
        nearest_module._launch_assign, of(1000, 8).expand(4, -1, -1), of(4, 5, 8), *results(4, 1000), None
    )
    assert found[0].bytes == 1000 * 8 * 4 + 4 * 5 * 8 * 4 + 4 * 1000 * (8 + 4)


def results(*shape):
    return of(*shape, dtype=torch.int64), of(*shape)


@pytest.mark.parametrize("device", cost.DEVICES, ids=lambda device: device.name)
def test_twice_the_rows_take_about_twice_the_time(device):
    # One compilation is enough: the architecture does not matter here.
    device = cost.Device(device.name, 90, *device[2:])
    times = [
        cost.microseconds(cost_cases.COUNTED["project"](N=n, D=768, d=8, dtype="bfloat16"), device)
        for n in (1_000_000, 2_000_000)
    ]
    assert 1.9 < times[1] / times[0] < 2.01


def test_more_bandwidth_and_a_higher_clock_are_not_slower():
    found = cost_cases.COUNTED["project"](N=1_000_000, D=768, d=8, dtype="bfloat16")
    prediction = cost.predict(found[1], H200)
    assert prediction.bound == "bandwidth"
    assert prediction.work.instructions * 4 * 15_625 == prediction.instructions
    # 768 / 64 passes of the loop over the row, and no second look at the rows.
    loops = {name: count for name, count in prediction.work.loops.items() if name}
    assert [count % 12 for count in loops.values()] == [0]
    slower = cost.Device(*H200[:4], 2400, *H200[5:])
    assert cost.predict(found[1], slower).microseconds > 1.9 * prediction.microseconds


def test_blocks_that_fit_follow_the_scarcest_resource():
    def resident(registers, shared, warps):
        return cost.resident_blocks(H200, cost.Code(None, registers, shared, 1.0), warps)

    assert resident(128, 0, 4) == 4
    assert resident(16, 100_000, 4) == 2
    assert resident(16, 0, 16) == 4
    assert resident(16, 0, 1) == 32


@pytest.fixture
def counted(monkeypatch):
    """The kernels that are launched on the CPU, where they are asked for and do nothing, as in test_launches."""
    found = []
    monkeypatch.setattr(type(random._uniform), "run", lambda kernel, *_, **__: found.append(kernel.__name__))
    monkeypatch.setattr(language, "INTERPRETED", True)
    return found


LAUNCHES = {
    "seed of few points": (lambda x: seed(x, 4), (2, 70, 8), ["_seed"]),
    "seed of many points": (lambda x: seed(x, 4), (2, 9000, 8), ["_seed"] * 5),
    "nearest": (lambda x: nearest(x, x[:, :5]), (2, 70, 8), ["_assign"]),
    "k-means": (lambda x: lloyd(x, x[:, :5], 3), (2, 70, 8), ["_assign", "_update"] * 4),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_are_those_of_a_call(counted, monkeypatch, name):
    call, shape, expected = LAUNCHES[name]
    call(torch.ones(shape))
    assert counted == expected
    monkeypatch.setattr(language, "INTERPRETED", False)
    assert [launch.name for launch in launches(call, of(*shape)) if launch.kernel] == expected


def test_the_probe_of_the_model_starts_the_kernels_of_the_library():
    shape = {"N": 20_000, "D": 96, "d": 8, "K": 20, "C": 10}
    rows = {name: of(20_000, 96, dtype=torch.bfloat16) for name in "ab"}
    options = EstimatorOptions("clusters", 20, 8, True, 32, 0, 1e-3, 0)
    labels = of(20_000, dtype=torch.int64)
    real = launches(clusters._observe_embeddings, *rows.values(), labels, tuple(rows), 20, 10, options)
    kernels = Counter((launch.name, launch.blocks) for launch in real if launch.kernel)
    assert (
        Counter((launch.name, launch.blocks) for launch in cost_cases.COUNTED["probe kernels"](**shape))
        == kernels
    )
    assert len(real) > sum(kernels.values())


def test_every_kernel_has_a_case():
    counted = [cost_cases.COUNTED[name](**shape) for name, shape in cost_cases.CASES]
    kernels = {variant.kernel.__name__ for variant in all_variants()}
    assert {launch.name for found in counted for launch in found if launch.kernel} == kernels


def test_every_op_has_a_launcher():
    ops = {name for name in dir(torch.ops.ecsfusion_kernels) if not name.startswith("_")} - {"name"}
    assert {"project", "lloyd", "nearest", "broja"} <= ops
    assert all(callable(launcher_of(name)) for name in ops)
    with pytest.raises(ValueError, match="call it _launch_none"):
        launcher_of("none")


def test_launches_need_triton_itself(monkeypatch):
    monkeypatch.setattr(language, "INTERPRETED", True)
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        launches(nearest, of(1, 70, 8), of(1, 5, 8))


def test_measured_times_stand_beside_predicted_ones(tmp_path, capsys):
    shape = {"N": 20_000, "D": 768, "d": 8, "dtype": "bfloat16"}
    line = {"device": "NVIDIA H200", "benchmark": "project", "shape": shape, "milliseconds": 0.0123}
    file = tmp_path / "measured.jsonl"
    file.write_text(json.dumps(line) + "\n")
    assert cost.main(["--kernel", "project", "--device", "H200", "--measured", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "All times are predictions" in printed
    assert printed.count("H200: predicted") == 2
    assert "measured 12.3 us" in printed
    file.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is no measurement"):
        cost.read_measured(file)


def test_an_unknown_name_is_said(capsys):
    with pytest.raises(SystemExit):
        cost.main(["--kernel", "unknown"])
    assert "nothing is chosen" in capsys.readouterr().err
