"""The machine that executes PTX, on small programs with known answers, and on kernels that are made wrong."""

import re

import numpy as np
import pytest
import torch
from ecsfusion_kernels import language
from ecsfusion_kernels.ptx import parse
from ptx_machine import Machine
from ptx_memory import ExecutionError, RaceError

MODULE = """
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry program(
	.param .u64 .ptr .global .align 1 program_param_0,
	.param .u64 .ptr .global .align 1 program_param_1
)
.reqntid 64
{{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<30>;
	.reg .b64 	%rd<30>;
	ld.param.b64 	%rd1, [program_param_0];
	ld.param.b64 	%rd2, [program_param_1];
	mov.u32 	%r1, %tid.x;   // the thread
	shl.b32 	%r2, %r1, 2;   // its place in shared memory
	mov.u32 	%r3, %ctaid.x;
	mad.lo.s32 	%r4, %r3, 64, %r1;
	mad.wide.s32 	%rd3, %r4, 4, %rd1;  // its place in the first tensor
	mad.wide.s32 	%rd4, %r4, 4, %rd2;  // and in the second
	{}
	ret;
}}
"""


def run(body, first, second, blocks=1, num_warps=2, races=True, seed=0, cooperative=False):
    machine = Machine(parse(MODULE.format(body)), num_warps, 1024, races)
    machine.launch((blocks,), [first, second], seed, cooperative)
    return second


def integers(*values, size=64):
    return torch.tensor(values or range(size), dtype=torch.int32)


def bits(value):
    return int(np.array(value, np.float32).view(np.uint32))


# Every thread writes, then reads what the thread of the other warp wrote.
EXCHANGE = """
	st.shared.b32 [%r2], %r1;
	bar.sync 0;
	xor.b32 %r5, %r2, 128;
	ld.shared.b32 %r6, [%r5];
	st.global.b32 [%rd4], %r6;
"""


def test_warps_exchange_numbers_at_a_barrier():
    found = run(EXCHANGE, integers(), integers())
    assert torch.equal(found, integers() ^ 32)


def test_without_the_barrier_it_is_a_race():
    with pytest.raises(
        RaceError, match=r"read of shared memory that is not ordered after a write.*ld\.shared"
    ):
        run(EXCHANGE.replace("bar.sync 0;", ""), integers(), integers())


def test_a_write_must_wait_for_the_reads_of_others():
    again = EXCHANGE + "bar.sync 0; st.shared.b32 [%r2], %r6;"
    run(again, integers(), integers())
    with pytest.raises(RaceError, match="write of shared memory that is not ordered after a read"):
        run(again.replace("bar.sync 0; st", "st"), integers(), integers())


def test_two_warps_that_write_to_one_place():
    same = "mov.b32 %r5, 0; st.shared.b32 [%r5], {};"
    run(same.format(7), integers(), integers())
    with pytest.raises(RaceError, match="two warps write different numbers"):
        run(same.format("%r1"), integers(), integers())


def test_of_the_threads_of_a_warp_any_may_win():
    body = "mov.b32 %r5, 0; st.shared.b32 [%r5], %r1; ld.shared.b32 %r6, [%r5]; st.global.b32 [%rd4], %r6;"
    winners = {int(run(body, integers(), integers(), num_warps=1, seed=seed)[0]) for seed in range(8)}
    assert len(winners) > 3


def test_memory_that_nothing_has_written():
    with pytest.raises(ExecutionError, match="nothing has written"):
        run("ld.shared.b32 %r5, [%r2];", integers(), integers())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.b32 [%rd4+4], %r1;", "byte 256 is outside of a tensor, bytes 0 to 256"),
        ("ld.global.b32 %r5, [%rd3+-4];", "is outside of|in no tensor"),
        ("ld.global.v2.b32 {%r5, %r6}, [%rd3];", "an access of 8 bytes of a tensor at byte 4"),
        ("ld.shared.b32 %r5, [%r2+1000];", "outside of shared memory"),
        ("mov.b64 %rd5, 0; ld.global.b32 %r5, [%rd5];", "in no tensor"),
    ],
)
def test_addresses_are_checked(body, message):
    with pytest.raises(ExecutionError, match=message):
        run(body, integers(size=66), integers())


def test_a_view_is_all_that_may_be_touched():
    wide = torch.zeros(4, 128, dtype=torch.int32)
    run("st.global.b32 [%rd4], %r1;", integers(), wide[1, 32:96])
    assert torch.equal(wide[1, 32:96], integers())
    assert int(wide.sum()) == int(integers().sum())
    with pytest.raises(ExecutionError, match="outside of a tensor"):
        run("st.global.b32 [%rd4], %r1;", integers(), wide[1, 33:96])


COPY = """
	shl.b32 %r7, %r1, 4;
	mad.wide.s32 %rd5, %r1, 16, %rd1;
	cp.async.cg.shared.global [ %r7 + 0 ], [ %rd5 + 0 ], 0x10, 0x10;
	cp.async.commit_group ;
	cp.async.wait_group 0;
	bar.sync 0;
	xor.b32 %r8, %r7, 512;
	ld.shared.b32 %r9, [%r8];
	st.global.b32 [%rd4], %r9;
"""


def test_an_asynchronous_copy_is_there_after_its_wait():
    source = integers(size=256)
    assert torch.equal(
        run(COPY, source, integers()), (source.view(64, 4)[:, 0].view(2, 32).flip(0)).flatten()
    )


def test_an_asynchronous_copy_lands_at_any_time_before_its_wait():
    early = COPY.replace("wait_group 0", "wait_group 1")
    with pytest.raises(RaceError, match="where an asynchronous copy may still land"):
        run(early, integers(size=256), integers())
    source = torch.ones(256, dtype=torch.int32)
    landed = {bool((run(early, source, integers(), races=False, seed=seed) == 1).all()) for seed in range(12)}
    assert landed == {True, False}


def test_its_wait_is_only_that_of_its_own_warp():
    with pytest.raises(RaceError, match="not ordered after a write by another warp"):
        run(COPY.replace("bar.sync 0;", ""), integers(size=256), integers())


# Each block stores 64 numbers and announces it; the last to do so sums up all.
LAST_BLOCK = """
	st.global.b32 [%rd3], %r4;
	bar.sync 0;
	setp.ne.b32 %p1, %r1, 0;
	@%p1 bra $END;
	add.s64 %rd5, %rd2, 4;
	mov.b32 %r5, 1;
	atom.global.gpu.acq_rel.add.u32 %r6, [ %rd5 + 0 ], %r5;
	setp.ne.b32 %p2, %r6, 2;
	@%p2 bra $END;
	mov.b32 %r7, 0;
	mov.b32 %r8, 0;
$LOOP:
	mad.wide.s32 %rd6, %r8, 4, %rd1;
	ld.global.cg.b32 %r9, [%rd6];
	add.s32 %r7, %r7, %r9;
	add.s32 %r8, %r8, 1;
	setp.lt.s32 %p3, %r8, 192;
	@%p3 bra $LOOP;
	st.global.b32 [%rd2], %r7;
$END:
"""


def test_the_last_block_sees_what_all_have_stored():
    for seed in range(4):
        found = run(LAST_BLOCK, integers(size=192) * 0 - 9, integers(0, 0), blocks=3, seed=seed)
        assert found.tolist() == [sum(range(192)), 3]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("acq_rel", "relaxed"), ("acq_rel", "release"), ("bar.sync 0;", "")],
)
def test_without_the_order_of_the_atomic_it_is_a_race(right, wrong):
    """Relaxed, without acquire, no barrier before it: in any order of blocks."""
    for seed in range(4):
        with pytest.raises(RaceError):
            run(
                LAST_BLOCK.replace(right, wrong),
                integers(size=192) * 0 - 9,
                integers(0, 0),
                blocks=3,
                seed=seed,
            )


# Each block announces itself, waits for all three, and copies what the next one has stored.
ALL_BLOCKS = """
	st.global.b32 [%rd3], %r4;
	bar.sync 0;
	setp.ne.b32 %p1, %r1, 0;
	@%p1 bra $THERE;
	add.s64 %rd5, %rd2, 768;
	mov.b32 %r5, 1;
	atom.global.gpu.release.add.u32 %r6, [ %rd5 + 0 ], %r5;
	mov.b32 %r5, 0;
$WAIT:
	atom.global.gpu.acquire.add.u32 %r6, [ %rd5 + 0 ], %r5;
	setp.lt.s32 %p2, %r6, 3;
	@%p2 bra $WAIT;
$THERE:
	bar.sync 0;
	add.s32 %r7, %r4, 64;
	rem.u32 %r8, %r7, 192;
	mad.wide.s32 %rd6, %r8, 4, %rd1;
	ld.global.cg.b32 %r9, [%rd6];
	st.global.b32 [%rd4], %r9;
"""


def wait_for_all_blocks(body, cooperative=True, seed=0):
    first, second = integers(size=192) * 0 - 9, integers(size=193) * 0
    return run(body, first, second, blocks=3, cooperative=cooperative, seed=seed)[:-1]


def test_blocks_of_a_cooperative_launch_wait_for_each_other():
    for seed in range(4):
        assert torch.equal(wait_for_all_blocks(ALL_BLOCKS, seed=seed), integers(size=192).roll(-64))


def test_blocks_of_another_launch_must_not_wait(monkeypatch):
    monkeypatch.setattr("ptx_machine.MAX_STEPS", 1000)
    with pytest.raises(ExecutionError, match="does not end"):
        wait_for_all_blocks(ALL_BLOCKS, cooperative=False)


@pytest.mark.parametrize(
    ("right", "wrong"), [("release", "relaxed"), ("acquire", "relaxed"), ("bar.sync 0;", "")]
)
def test_blocks_that_wait_without_order_are_a_race(right, wrong):
    for seed in range(4):
        with pytest.raises(RaceError):
            wait_for_all_blocks(ALL_BLOCKS.replace(right, wrong), seed=seed)


def test_a_fixed_block_in_the_place_of_the_last_is_right_by_chance_only():
    wrong, outcomes = LAST_BLOCK.replace("%r6, 2;", "%r3, 2;"), set()
    for seed in range(8):
        try:
            run(wrong, integers(size=192) * 0 - 9, integers(0, 0), blocks=3, seed=seed)
            outcomes.add("right")
        except RaceError:
            outcomes.add("race")
    assert outcomes == {"right", "race"}


def test_threads_part_and_meet():
    """Each runs the loop as often as its number says; a barrier holds all of them."""
    body = """
	mov.b32 %r5, 0;
	and.b32 %r6, %r1, 37;
$LOOP:
	setp.ge.s32 %p1, %r5, %r6;
	@%p1 bra $DONE;
	add.s32 %r5, %r5, 1;
	bra.uni $LOOP;
$DONE:
	st.shared.b32 [%r2], %r5;
	bar.sync 0;
	xor.b32 %r7, %r2, 252;
	ld.shared.b32 %r8, [%r7];
	st.global.b32 [%rd4], %r8;
"""
    assert torch.equal(run(body, integers(), integers()), (integers() & 37).flip(0))
    with pytest.raises(ExecutionError, match="some threads of a warp do not take part"):
        run("setp.eq.b32 %p1, %r1, 3; @%p1 shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;", integers(), integers())


def test_threads_wait_for_those_of_their_warp_that_come_from_further_down():
    body = """
	and.b32 %r5, %r1, 1;
	setp.eq.s32 %p1, %r5, 0;
	@%p1 bra $SLOW;
$JOIN:
	shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1;
	st.global.b32 [%rd4], %r6;
	bra.uni $DONE;
$SLOW:
	bra.uni $JOIN;
$DONE:
	bar.sync 0;
"""
    own = torch.arange(64, dtype=torch.int32)
    assert torch.equal(run(body, integers(), integers()), own ^ 1)


def test_a_number_from_a_thread_below():
    """The first threads of a warp keep their own."""
    body = "shfl.sync.up.b32 %r5, %r1, 3, 0, -1; st.global.b32 [%rd4], %r5;"
    own = torch.arange(64, dtype=torch.int32)
    assert torch.equal(run(body, integers(), integers()), torch.where(own % 32 < 3, own, own - 3))


def test_numbers_become_integers_towards_zero_and_within_their_range():
    body = (
        "cvt.rn.f32.s32 %r5, %r1; mul.f32 %r6, %r5, {}; cvt.rzi.s32.f32 %r7, %r6; st.global.b32 [%rd4], %r7;"
    )
    minus_half, huge = "0fBF000000", "0f7E000000"
    expected = (torch.arange(64) * -0.5).trunc().int()
    assert torch.equal(run(body.format(minus_half), integers(), integers()), expected)
    with pytest.raises(ExecutionError, match="out of range"):
        run(body.format(huge), integers(), integers())


def test_a_kernel_that_never_ends(monkeypatch):
    monkeypatch.setattr("ptx_machine.MAX_STEPS", 100)
    with pytest.raises(ExecutionError, match="does not end"):
        run("$AGAIN: bra.uni $AGAIN;", integers(), integers())


@pytest.mark.parametrize(
    "instruction",
    [
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%r5}, %rd5, %rd6, 1, 1, 1",
        "tcgen05.ld.sync.aligned.16x64b.x1.b32 {%r5}, [%r6]",
        "bar.sync 1, 32",
        "ld.global.acquire.b32 %r5, [%rd3]",
        "ld.global.L1::evict_first.b32 %r5, [%rd3]",
        "cvt.rn.satfinite.e4m3x2.f32 %rs1, %r5, %r6",
        "add.sat.s32 %r5, %r5, %r6",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r5}, {%r6}, {%r7}, {%r8}",
        "shfl.sync.bfly.b32 %r5, %r6, 1, 15, -1",
        "atom.global.gpu.relaxed.cas.b32 %r5, [%rd3], %r6, %r7",
        "mov.u32 %r5, %clock",
    ],
)
def test_what_is_not_modelled_is_refused_with_its_text(instruction):
    with pytest.raises(ExecutionError, match=re.escape(instruction)):
        run(f"{instruction};", integers(), integers())


NAN, INFINITY = 0x7FC00000, bits(np.inf)


@pytest.mark.parametrize(
    ("instruction", "x", "y", "expected"),
    [
        ("add.s32 %r9, %r7, %r8", 0x7FFFFFFF, 1, 0x80000000),
        ("mul.hi.u32 %r9, %r7, %r8", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE),
        ("mul.wide.s32 %rd9, %r7, %r8; cvt.u32.u64 %r9, %rd9", -3 & 0xFFFFFFFF, 5, -15 & 0xFFFFFFFF),
        ("mul.wide.s32 %rd9, %r7, %r8; mov.b64 {_, %r9}, %rd9", -3 & 0xFFFFFFFF, 5, 0xFFFFFFFF),
        ("div.s32 %r9, %r7, %r8", -7 & 0xFFFFFFFF, 2, -3 & 0xFFFFFFFF),
        ("rem.u32 %r9, %r7, %r8", 17, 5, 2),
        ("shr.s32 %r9, %r7, 40", 0x80000000, 0, 0xFFFFFFFF),
        ("shl.b32 %r9, %r7, %r8", 1, 32, 0),
        ("bfe.s32 %r9, %r7, 4, 4", 0x00A0, 0, -6 & 0xFFFFFFFF),
        ("bfe.u32 %r9, %r7, 4, 4", 0x00A0, 0, 10),
        ("prmt.b32 %r9, %r7, %r8, 0x7531U", 0x44332211, 0x88776655, 0x88664422),
        ("popc.b32 %r9, %r7", 0xF00F0001, 0, 9),
        ("neg.s32 %r9, %r7", 5, 0, -5 & 0xFFFFFFFF),
        ("mov.b32 {%rs1, %rs2}, %r7; mov.b32 %r9, {%rs2, %rs1}", 0x12345678, 0, 0x56781234),
        ("min.f32 %r9, %r7, %r8", NAN, bits(2), bits(2)),
        ("fma.rn.f32 %r9, %r7, %r7, %r8", bits(1 + 2**-12), bits(-1 - 2**-11), bits(2**-24)),
        ("setp.lt.f32 %p1, %r7, %r8; selp.b32 %r9, 1, 2, %p1", NAN, bits(1), 2),
        ("setp.ltu.f32 %p1, %r7, %r8; selp.b32 %r9, 1, 2, %p1", NAN, bits(1), 1),
        ("setp.ne.f32 %p1, %r7, %r8; selp.b32 %r9, 1, 2, %p1", NAN, bits(1), 2),
        ("setp.num.f32 %p1, %r7, %r8; selp.b32 %r9, 1, 2, %p1", NAN, bits(1), 2),
        ("abs.f32 %r9, %r7", bits(-3), 0, bits(3)),
        ("abs.bf16x2 %r9, %r7", 0xBF80FF80, 0, 0x3F807F80),
        ("cvt.rna.tf32.f32 %r9, %r7", 0x3F801000, 0, 0x3F802000),
        ("cvt.rn.bf16x2.f32 %r9, %r7, %r8", 0x3F818000, 0x3F808000, 0x3F823F80),
        ("cvt.rn.f16x2.f32 %r9, %r7, %r8", bits(1), bits(65520), 0x3C007C00),
        ("cvt.rn.f32.s32 %r9, %r7", -2 & 0xFFFFFFFF, 0, bits(-2)),
        ("mul.f32 %r9, %r7, %r8", INFINITY, 0, bits(np.nan)),
        ("ex2.approx.ftz.f32 %r9, %r7", bits(-140), 0, 0),
        ("ex2.approx.f32 %r9, %r7", bits(-140), 0, bits(2.0**-140)),
        ("redux.sync.add.s32 %r9, %r7, %r5", 3, 0, 96),
    ],
)
def test_arithmetic(instruction, x, y, expected):
    operands = "mov.b32 %r5, -1; ld.global.b32 %r7, [%rd1]; ld.global.b32 %r8, [%rd1+4];"
    body = f"{operands} {instruction}; st.global.b32 [%rd4], %r9;"
    first = torch.tensor([x, y]).to(torch.int32)
    found = int(run(body, first, integers())[0]) & 0xFFFFFFFF
    if expected == bits(np.nan):
        assert np.isnan(np.array(found, np.uint32).view(np.float32))
    else:
        assert found == expected, f"{found:#x}"


@pytest.fixture
def outcome(monkeypatch):
    """Executes a case of `test_executed_kernels` with the PTX of one kernel changed.

    Gives what the fault says, or whether the result is "right" or "wrong".
    """
    if language.triton is None or language.INTERPRETED:
        pytest.skip("Triton, which compiles the kernels, exists for Linux only")
    import ptx_launch
    import test_executed_kernels

    def execute(name, kernel, change, **options):
        case = test_executed_kernels.CASES[name]()
        for limit in case.limits:
            monkeypatch.setattr(*limit)

        def change_one(launched, ptx):
            return change(ptx) if launched == kernel else ptx

        try:
            with ptx_launch.executed(monkeypatch, change=change_one, **options):
                result = case.call()
            case.check(result)
        except ExecutionError as fault:
            return str(fault)
        except AssertionError:
            return "wrong"
        return "right"

    return execute


def outcomes(outcome, name, kernel, pattern, replacement):
    """With each place of a pattern replaced in turn."""
    found, places = [], 1

    def change(ptx):
        nonlocal places
        matches = list(re.finditer(pattern, ptx))
        places, match = len(matches), matches[len(found)]
        return ptx[: match.start()] + match.expand(replacement) + ptx[match.end() :]

    while len(found) < places:
        found.append(outcome(name, kernel, change))
    return found


def test_barriers_that_kernels_need(outcome):
    """Taken out one by one: each is a race, but for those that follow another, or come before anything is shared."""
    found = outcomes(outcome, "loglinear 5 x 4 x 3", "_loglinear", r"bar\.sync\s+0;", "")
    assert sum("not ordered after" in text for text in found) > 2 * found.count("right")
    assert "wrong" not in found


PIPELINED = ("project bfloat16 8 vector", "_project")


def test_a_wait_for_one_group_too_few(outcome):
    """Rows are multiplied while their copy may still land; without the check for races the result is wrong."""

    def wait_for_less(ptx):
        return re.sub(r"(cp\.async\.wait_group\s+)(\d+)", lambda match: f"{match[1]}{int(match[2]) + 1}", ptx)

    found = outcome(*PIPELINED, wait_for_less)
    assert "read of shared memory where an asynchronous copy may still land" in found
    assert outcome(*PIPELINED, wait_for_less, races=False) == "wrong"


def test_a_copy_into_a_buffer_that_is_still_read(outcome):
    """The barrier before a copy is taken out."""
    before_a_copy = r"bar\.sync\s+0;(?=(?:(?!bar\.sync)[\s\S])*?cp\.async\.cg)"
    found = outcomes(outcome, *PIPELINED, before_a_copy, "")
    assert any(
        "asynchronous copy of shared memory that is not ordered after a read" in text for text in found
    )


def test_a_product_that_still_runs_when_its_rows_are_overwritten(outcome):
    """What was seen on an H200: the wait for one product too few, and a copy into the buffer that it reads."""

    def wait_for_less(ptx):
        return re.sub(r"(wgmma\.wait_group\.sync\.aligned\s+)0", r"\g<1>1", ptx)

    found = outcome(*PIPELINED, wait_for_less, architecture=90)
    assert "asynchronous copy of shared memory where a product may still read" in found


def test_the_last_block_is_not_the_one_with_the_highest_number(outcome):
    atomic = r"atom\.global\.gpu\.acq_rel\.add\.u32 (%r\d+), \[[^\]]*\], %r\d+"
    for pattern, replacement in ((atomic, r"mov.u32 \1, %ctaid.x"), (r"\.acq_rel\.", ".relaxed.")):
        (found,) = outcomes(outcome, "lloyd 5 x 8", "_update", pattern, replacement)
        assert "a tensor that is not ordered after" in found


def test_programs_that_wait_for_each_other_need_the_order_of_their_atomics(outcome):
    found = outcomes(outcome, "match_prior 20", "_match_prior", r"gpu\.(acq_rel|acquire)", "gpu.relaxed")
    assert len(found) == 4
    assert all("a tensor that is not ordered after" in text for text in found)


def test_a_mask_that_is_missing(outcome):
    found = outcomes(outcome, "lloyd 5 x 8", "_assign", r"@%p\d+ (?=st\.global)", "")
    assert any("is outside of a tensor" in text for text in found)
