"""Single PTX instructions, executed by cuda_emulator/ptx.cpp, do what the manual of PTX says. Needs no nvcc."""

import ctypes

import pytest
import torch
from cuda_emulator import VARIANT, ptx, ptx_text

pytestmark = pytest.mark.skipif(VARIANT != "plain", reason="PTX runs in the plain emulator only")

KERNEL = """
.visible .entry kernel(
	.param .u64 result,
	.param .align 8 .b8 structure[16]
)
{
	.reg .pred %p<3>;
	.reg .b16 %h<5>;
	.reg .b32 %r<9>;
	.reg .f32 %f<4>;
	.reg .b64 %x<9>;
	.reg .f64 %d<4>;
	.shared .align 4 .b8 tile[12];
	.local .align 8 .b8 depot[16];
	ld.param.u64 %x1, [result];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %x2, %r1, 8;
	add.s64 %x1, %x1, %x2;
	BODY
	st.global.TYPE [%x1], RESULT;
	ret;
}
"""
INTEGER, FLOAT, DOUBLE = ("s64", "%x3", torch.int64), ("f32", "%f1", torch.float32), ("f64", "%d1", torch.float64)
NAN32, HALF, ONE, MINUS_ZERO = "0f7FC00000", "0f3F000000", "0f3F800000", "0f80000000"


def execute(body: str, result: tuple[str, str, torch.dtype], threads: int = 1, shared: int = 0) -> list[float]:
    """The registers that `result` names, one of each thread."""
    kind, register, dtype = result
    values = torch.zeros(threads, 8 // dtype.itemsize, dtype=dtype)
    text = KERNEL.replace("BODY", body).replace("TYPE", kind).replace("RESULT", register)
    structure = torch.tensor([11, 22]).numpy().ctypes.data_as(ctypes.POINTER(ctypes.c_int64 * 2)).contents
    ptx.run(text, [values, structure], threads=threads, shared=shared)
    return values[:, 0].tolist()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("mov.s64 %x3, -5;", -5),
        ("add.s32 %r2, 2147483647, 1; cvt.s64.s32 %x3, %r2;", -(2**31)),
        ("mul.wide.s32 %x3, -3, 1000000000;", -3_000_000_000),
        ("mul.hi.u32 %r2, -1, -1; cvt.u64.u32 %x3, %r2;", 2**32 - 2),
        ("mul.hi.s64 %x3, -1, 5;", -1),
        ("mad.lo.s32 %r2, -2, 3, 7; cvt.s64.s32 %x3, %r2;", 1),
        ("mad.wide.s32 %x3, -2, 3, 5000000000;", 4_999_999_994),
        ("div.s32 %r2, -7, 2; cvt.s64.s32 %x3, %r2;", -3),
        ("div.s64 %x3, 7, 0;", -1),
        ("div.s32 %r2, 0x80000000, -1; cvt.s64.s32 %x3, %r2;", -(2**31)),
        ("rem.s32 %r2, -7, 2; cvt.s64.s32 %x3, %r2;", -1),
        ("rem.u64 %x3, 7, 0;", 7),
        ("min.s32 %r2, -1, 1; cvt.s64.s32 %x3, %r2;", -1),
        ("min.u32 %r2, -1, 1; cvt.u64.u32 %x3, %r2;", 1),
        ("abs.s64 %x3, -9;", 9),
        ("shl.b32 %r2, 1, 32; cvt.u64.u32 %x3, %r2;", 0),
        ("shr.s32 %r2, -8, 40; cvt.s64.s32 %x3, %r2;", -1),
        ("shr.u64 %x3, -1, 60;", 15),
        ("shf.l.wrap.b32 %r2, 0x80000000, 1, 33; cvt.u64.u32 %x3, %r2;", 3),
        ("shf.r.clamp.b32 %r2, 1, 2, 40; cvt.u64.u32 %x3, %r2;", 2),
        ("bfe.s32 %r2, 0xF0, 4, 4; cvt.s64.s32 %x3, %r2;", -1),
        ("bfe.u64 %x3, 0xABCD, 4, 8;", 0xBC),
        ("bfi.b64 %x3, 0xF, 0xABCD, 4, 4;", 0xABFD),
        ("lop3.b32 %r2, 12, 10, 6, 0x96; cvt.u64.u32 %x3, %r2;", 12 ^ 10 ^ 6),
        ("prmt.b32 %r2, 0x33228011, 0x77665544, 0x9174; cvt.u64.u32 %x3, %r2;", 0xFF807744),
        ("popc.b64 %r2, -1; clz.b32 %r3, 1; sub.s32 %r2, %r2, %r3; cvt.s64.s32 %x3, %r2;", 33),
        ("bfind.u32 %r2, 40; bfind.shiftamt.u32 %r3, 40; sub.s32 %r2, %r3, %r2; cvt.s64.s32 %x3, %r2;", 26 - 5),
        ("bfind.u64 %r2, 40; cvt.u64.u32 %x3, %r2;", 5),
        ("bfind.shiftamt.u32 %r2, 0; cvt.u64.u32 %x3, %r2;", 0xFFFFFFFF),
        ("brev.b32 %r2, 6; cvt.u64.u32 %x3, %r2;", 6 << 28 | 0),
        ("not.b16 %h1, 0; cvt.u64.u16 %x3, %h1;", 65535),
        ("mov.b32 %r2, {1, 2}; cvt.u64.u32 %x3, %r2;", 0x20001),
        ("mov.b64 {%r2, %r3}, 0x500000007; cvt.u64.u32 %x3, %r3;", 5),
        # comparisons
        (f"setp.lt.f32 %p1, {NAN32}, {ONE}; selp.b64 %x3, 1, 2, %p1;", 2),
        (f"setp.ltu.f32 %p1, {NAN32}, {ONE}; selp.b64 %x3, 1, 2, %p1;", 1),
        (f"setp.ne.f32 %p1, {NAN32}, {NAN32}; selp.b64 %x3, 1, 2, %p1;", 2),
        (f"setp.neu.f32 %p1, {NAN32}, {NAN32}; selp.b64 %x3, 1, 2, %p1;", 1),
        (f"setp.equ.f32 %p1, {NAN32}, {ONE}; selp.b64 %x3, 1, 2, %p1;", 1),
        ("setp.lt.s32 %p1, -1, 1; setp.lt.u32 %p2, -1, 1; xor.pred %p1, %p1, %p2; selp.b64 %x3, 1, 2, %p1;", 1),
        ("mov.pred %p1, -1; setp.lt.and.s32 %p1|%p2, 2, 1, %p1; selp.b64 %x3, 1, 2, %p2;", 1),
        ("mov.u64 %x3, 1; setp.eq.s32 %p1, 1, 1; @%p1 bra past; mov.u64 %x3, 2; past:", 1),
        ("mov.u64 %x3, 1; setp.eq.s32 %p1, 1, 1; @!%p1 bra past; mov.u64 %x3, 2; past:", 2),
        # conversions
        ("cvt.rzi.s32.f32 %r2, 0f4F800000; cvt.s64.s32 %x3, %r2;", 2**31 - 1),
        ("cvt.rzi.u32.f32 %r2, 0fBF800000; cvt.u64.u32 %x3, %r2;", 0),
        (f"cvt.rzi.s32.f32 %r2, {NAN32}; cvt.s64.s32 %x3, %r2;", 0),
        (f"cvt.rzi.s64.f32 %x3, {NAN32};", -(2**63)),
        ("cvt.rni.s64.f64 %x3, 0d4004000000000000;", 2),
        ("cvt.rmi.s64.f64 %x3, 0dC004000000000000;", -3),
        ("cvt.s64.s8 %x3, 255;", -1),
        ("cvt.rn.f16x2.f32 %r2, 0f3F800000, 0f40000000; cvt.u64.u32 %x3, %r2;", 0x3C004000),
        ("cvt.rn.bf16.f32 %h1, 0f3F808000; cvt.u64.u16 %x3, %h1;", 0x3F80),
        # memory
        ("st.local.u32 [depot+4], -2; ld.local.s32 %r2, [depot+4]; cvt.s64.s32 %x3, %r2;", -2),
        ("mov.u64 %x4, depot; st.u8 [%x4], 200; ld.s8 %h1, [%x4]; cvt.s64.s16 %x3, %h1;", -56),
        ("ld.param.u64 %x3, [structure+8];", 22),
        ("mov.b64 %x4, structure; ld.param.u64 %x3, [%x4];", 11),
        ("st.shared.u32 [tile+8], 7; ld.shared.u32 %r2, [tile+8]; cvt.u64.u32 %x3, %r2;", 7),
        ("st.shared.u32 [tile], 7; mov.u64 %x4, tile; cvta.shared.u64 %x4, %x4;"
         "ld.u32 %r2, [%x4]; cvt.u64.u32 %x3, %r2;", 7),
        ("st.shared.u32 [tile], 7; atom.shared.add.u32 %r2, [tile], 5; ld.shared.u32 %r3, [tile];"
         "mad.lo.s32 %r2, %r3, 100, %r2; cvt.u64.u32 %x3, %r2;", 1207),
        ("st.shared.u32 [tile], 7; atom.shared.cas.b32 %r2, [tile], 7, 9; red.shared.max.u32 [tile], 8;"
         "ld.shared.u32 %r3, [tile]; cvt.u64.u32 %x3, %r3;", 9),
    ],
)  # fmt: skip
def test_integer_instruction(body, expected):
    assert execute(body, INTEGER) == [expected]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"min.f32 %f1, {NAN32}, {ONE};", 1.0),
        (f"max.f32 %f1, {ONE}, {NAN32};", 1.0),
        (f"max.f32 %f1, {MINUS_ZERO}, 0f00000000; div.rn.f32 %f1, {ONE}, %f1;", float("inf")),
        (f"min.f32 %f1, 0f00000000, {MINUS_ZERO}; div.rn.f32 %f1, {ONE}, %f1;", float("-inf")),
        (f"add.rz.f32 %f1, {ONE}, 0f33C00000;", 1.0),  # 1 + 3/4 of the distance to the next number
        (f"add.rn.f32 %f1, {ONE}, 0f33C00000;", 1.0 + 2**-23),
        (f"add.rp.f32 %f1, {ONE}, 0f00000001;", 1.0 + 2**-23),
        (f"fma.rm.f32 %f1, {ONE}, 0f33C00000, {ONE};", 1.0),
        ("fma.rn.f32 %f1, 0f3F800001, 0f3F800001, 0fBF800002;", 2.0**-46),  # rounded once
        ("mul.f32 %f1, 0f3F800001, 0f3F800001; sub.f32 %f1, %f1, 0f3F800002;", 0.0),
        (f"copysign.f32 %f1, {MINUS_ZERO}, {HALF};", -0.5),
        ("sqrt.rn.f32 %f1, 0f40000000;", torch.tensor(2.0).sqrt().item()),
        ("ex2.approx.ftz.f32 %f1, 0f40400000;", 8.0),
        ("cvt.sat.f32.f32 %f1, 0f40000000;", 1.0),
        (f"cvt.sat.f32.f32 %f1, {NAN32};", 0.0),
        (f"cvt.rni.f32.f32 %f1, {HALF};", 0.0),
        (f"cvt.rpi.f32.f32 %f1, {HALF};", 1.0),
        ("cvt.rn.f32.s64 %f1, 16777217;", 16777216.0),
        ("cvt.f32.f16 %f1, 0x3E00;", 1.5),
        ("cvt.f32.bf16 %f1, 0x3FC0;", 1.5),
    ],
)
def test_float_instruction(body, expected):
    assert execute(body, FLOAT) == [expected]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # shfl: up and down stop at the ends of a segment, here of 16 lanes; outside of it a lane keeps its own
        ("shfl.sync.up.b32 %r2, %r1, 1, 0x1000, -1;", [max(i - 1, i // 16 * 16) for i in range(32)]),
        ("shfl.sync.down.b32 %r2, %r1, 3, 0x100F, -1;", [i + 3 if i % 16 < 13 else i for i in range(32)]),
        ("shfl.sync.bfly.b32 %r2, %r1, 5, 31, -1;", [i ^ 5 for i in range(32)]),
        ("shfl.sync.idx.b32 %r2, %r1, 18, 0x100F, -1;", [i // 16 * 16 + 2 for i in range(32)]),
        ("shfl.sync.up.b32 %r3|%p1, %r1, 1, 0, -1; selp.b32 %r2, 1, 0, %p1;", [0] + [1] * 31),
        ("setp.lt.u32 %p1, %r1, 3; vote.sync.ballot.b32 %r2, %p1, -1;", [7] * 32),
        ("setp.lt.u32 %p1, %r1, 3; vote.sync.all.pred %p2, %p1, -1; selp.b32 %r2, 1, 0, %p2;", [0] * 32),
        ("setp.lt.u32 %p1, %r1, 3; bar.red.popc.u32 %r2, 0, %p1;", [3] * 32),
        ("setp.lt.u32 %p1, %r1, 3; bar.red.and.pred %p2, 0, %p1; selp.b32 %r2, 1, 0, %p2;", [0] * 32),
        ("setp.lt.u32 %p1, %r1, 3; bar.red.or.pred %p2, 0, %p1; selp.b32 %r2, 1, 0, %p2;", [1] * 32),
        ("st.shared.u32 [tile], %r1; bar.sync 0; ld.shared.u32 %r2, [tile];", [31] * 32),
        ("mov.u32 %r2, %laneid; mov.u32 %r3, %ntid.x; add.s32 %r2, %r2, %r3;", [i + 32 for i in range(32)]),
    ],
)
def test_instruction_of_many_threads(body, expected):
    assert execute(f"{body} cvt.u64.u32 %x3, %r2;", INTEGER, threads=32) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("mma.sync.m8n8k4 %r2, %r1;", r"PTX: no instruction mma\.sync\.m8n8k4/2, needed at "),
        ("bar.sync 0, 32;", "PTX: no instruction bar.sync/2"),
        ("bar.sync 1;", "expected barrier 0"),
        ("trap;", "a trap by trap of thread"),
        ("ld.shared.u32 %r2, [tile+12];", "past the end of shared memory by ld.shared.u32 of thread"),
        ("ld.shared.u32 %r2, [tile+-4];", "past the end of shared memory"),
        ("ld.shared.v2.u32 {%r2, %r3}, [tile+4];", "a misaligned access of 8 bytes"),
        ("ld.global.u64 %x3, [%x1+4];", "a misaligned access of 8 bytes by ld.global.u64 of thread"),
    ],
)
def test_refused(body, message):
    with pytest.raises(RuntimeError, match=message):
        execute(body, INTEGER)


def test_an_unknown_symbol_is_refused():
    with pytest.raises(ptx_text.NotPossible, match=r"operand some_table of 'mov\.u64 %x3, some_table'"):
        execute("mov.u64 %x3, some_table;", INTEGER)


def test_dynamic_shared_memory_lies_behind_the_static():
    text = ".extern .shared .align 16 .b8 behind[];" + KERNEL
    body = "st.shared.u32 [behind+12], 5; ld.shared.u32 %r2, [behind+12]; cvt.u64.u32 %x3, %r2;"
    values = torch.zeros(1, dtype=torch.int64)
    text = text.replace("BODY", body).replace("TYPE", "u64").replace("RESULT", "%x3")
    parameters = [values, (ctypes.c_int64 * 2)()]
    ptx.run(text, parameters, shared=16)
    assert values.item() == 5
    with pytest.raises(RuntimeError, match="past the end of shared memory"):
        ptx.run(text, parameters, shared=12)
