"""Instructions of sm_90: products of four warps, which run beside the threads and read shared memory, and `stmatrix`.

Until it is waited for, a product may still read its operands: nothing may overwrite them. That a result is used before
the wait, and the fence between stores and a product, are not modelled.
"""

import functools

import numpy as np
from ecsfusion_kernels.ptx import parts
from ptx_arithmetic import MATRICES, check_whole_warps, cut_off, fragment, numbers_of, of_all, reader
from ptx_memory import ExecutionError

NUM_THREADS = 128
"""Of a warpgroup."""
ATOMS = {1: 128, 2: 64, 3: 32}
"""Bytes of a row of a swizzled tile by the layout type of a descriptor."""


@functools.cache
def offsets_in_tile(descriptor, rows, columns, itemsize, is_transposed):
    """Where the numbers of a matrix (rows, columns) lie in shared memory; the columns are summed over.

    In a tile of 8 rows the pieces of 16 bytes change places (swizzle). The tiles follow one another by the strides of
    the descriptor; see "Matrix Descriptor" and "Canonical Layouts" in the PTX ISA.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if descriptor >> 62 not in ATOMS or descriptor >> 49 & 7:
        raise ExecutionError("is not modelled for this layout in shared memory")
    width = ATOMS[descriptor >> 62]
    row, column = np.indices((rows, columns))
    if is_transposed:
        inner, outer = row * itemsize, column
        place = inner // width * leading + inner % width + outer // 8 * stride + outer % 8 * width
    else:
        inner = column * itemsize
        if columns * itemsize > width:
            raise ExecutionError("is not modelled for several tiles of columns")
        place = row // 8 * stride + row % 8 * width + inner
    place += start
    return (place ^ ((place >> 7) & (width // 16 - 1)) << 4).ravel()


class Product:
    """A product under way: what it reads, and for which warps."""

    def __init__(self, shared, offsets, size, warps):
        self.shared, self.offsets, self.size, self.warps = shared, offsets, size, warps
        shared.check_read(offsets, size, warps)
        shared.begin_reads(offsets, size)

    def wait(self):
        self.shared.end_reads(self.offsets, self.size, self.warps)


def warpgroup_product(instruction, program):
    """`wgmma.mma_async`: D = A B, or D += A B, of 64 rows; A is in registers or shared memory, B in shared memory."""
    shape, d_type, a_type, b_type = instruction.opcode[-4:]
    m, n, k = (int(size) for size in shape.replace("m", " ").replace("n", " ").replace("k", " ").split())
    if instruction.opcode[1:4] != ("mma_async", "sync", "aligned") or (f"m16n8k{k}", a_type) not in MATRICES:
        raise ExecutionError("is not modelled")
    targets, a, b, adds, *flags = instruction.operands
    if a_type != b_type or d_type != "f32" or flags[:2] != ["1", "1"]:
        raise ExecutionError("is not modelled")
    names, itemsize = parts(targets.strip("{} ")), 4 if a_type == "tf32" else 2
    transposed = [flag == "1" for flag in flags[2:]] or [False, False]
    in_registers = a.startswith("{")
    a_names = parts(a.strip("{} ")) if in_registers else [a]
    a_values = [reader(program, name, "b32" if in_registers else "b64") for name in a_names]
    b_value, keeps = reader(program, b, "b64"), reader(program, adds, "pred")
    old = [reader(program, name, "f32") for name in names]
    a_order = fragment(a_type, 4, 16, k, "a")
    c_order = fragment("f32", n // 2, 16, n, "c")
    back = np.argsort(c_order)

    def tile(block, value, group, rows, is_transposed):
        """(rows, k), and the product's claim to it."""
        descriptors = value(block)[group * NUM_THREADS : (group + 1) * NUM_THREADS]
        if (descriptors != descriptors[0]).any():
            raise ExecutionError("the threads of a warpgroup have different descriptors")
        offsets = offsets_in_tile(int(descriptors[0]), rows, k, itemsize, is_transposed)
        warps = block.warps[group * NUM_THREADS] + np.arange(4)
        # A warp reads its 16 rows of A, and all of B.
        read = np.tile(offsets, 4) if value is b_value else offsets
        readers = np.repeat(warps, len(read) // 4)
        block.products[-1].append(Product(block.shared, read, itemsize, readers))
        words = block.shared.load(offsets, itemsize, 1, np.full(len(offsets), warps[0]))
        return numbers_of(words.ravel(), a_type).reshape(rows, k)

    def execute(block, mask):
        if mask is not None or block.num_threads % NUM_THREADS:
            raise ExecutionError("is modelled for all threads at once")
        groups = range(block.num_threads // NUM_THREADS)
        right = np.stack([tile(block, b_value, group, n, transposed[-1]) for group in groups])
        if in_registers:
            words = np.stack([of_all(value(block), block) for value in a_values]).reshape(4, -1, 32)
            halves = (
                words[:, None]
                if itemsize == 4
                else np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], 1)
            )
            wide = numbers_of(halves, a_type).transpose(2, 0, 1, 3)
            left = wide.reshape(len(wide), -1)[:, a_order].reshape(-1, m, k)
        else:
            left = np.stack([tile(block, a_values[0], group, m, transposed[0]) for group in groups])
        total = left @ right.swapaxes(1, 2)
        words = np.stack([of_all(value(block), block) for value in old]).reshape(len(old), -1, 32)
        before = (
            words.astype(np.float64)
            .transpose(1, 0, 2)
            .reshape(words.shape[1], -1)[:, c_order]
            .reshape(-1, m, n)
        )
        added = of_all(keeps(block), block).reshape(len(groups), -1)[:, 0]
        total = cut_off(total + np.where(added[:, None, None], before, 0))
        values = total.reshape(-1, 16 * n)[:, back].reshape(-1, len(names), 32).transpose(1, 0, 2)
        for name, value in zip(names, values.reshape(len(names), -1), strict=True):
            block.put(name, value, None)

    return execute


def warpgroup(instruction, program):
    """The instructions of products: `mma_async`, fence, commit and wait."""
    if instruction.opcode[1] == "mma_async":
        return warpgroup_product(instruction, program)
    kind = instruction.opcode[1:]
    if kind == ("fence", "sync", "aligned"):
        return lambda block, mask: check_whole_warps(mask)
    pending = int(instruction.operands[0], 0) if kind == ("wait_group", "sync", "aligned") else None
    if pending is None and kind != ("commit_group", "sync", "aligned"):
        raise ExecutionError("is not modelled")

    def execute(block, mask):
        if mask is not None:
            raise ExecutionError("is modelled for all threads at once")
        if pending is None:
            block.products.append([])
        while pending is not None and len(block.products) - 1 > pending:
            for product in block.products.pop(0):
                product.wait()

    return execute


def fence(instruction, _):
    if instruction.opcode != ("fence", "proxy", "async", "shared::cta"):
        raise ExecutionError("is not modelled")
    return lambda block, mask: None


def store_matrices(instruction, program, address):
    """`stmatrix`: what `ldmatrix` loads; a row of 16 bytes to the address of each thread."""
    num_matrices = int(instruction.opcode[4][1:])
    if instruction.opcode[1:4] != ("sync", "aligned", "m8n8") or instruction.opcode[5:] != ("shared", "b16"):
        raise ExecutionError("is not modelled")
    rows = address(instruction.operands[0], program, True)
    values = [reader(program, name, "b32") for name in parts(instruction.operands[1].strip("{} "))]

    def execute(block, mask):
        if mask is not None:
            raise ExecutionError("is modelled for all threads at once")
        own = rows(block).reshape(-1, 32)[:, : 8 * num_matrices].ravel()
        warps = block.warps.reshape(-1, 32)[:, : 8 * num_matrices].ravel()
        words = np.stack([of_all(value(block), block).reshape(-1, 8, 4) for value in values], 1)
        block.shared.store(own, np.ascontiguousarray(words.reshape(len(own), 4)), warps)

    return execute
