"""Memory that knows who may see what: an access that another warp's may overtake is a fault.

Every warp of a launch has a vector clock: for each other warp, up to which of its steps everything is visible. A
barrier joins the clocks of a block, an atomic with acquire and release those of two blocks. Two accesses of the same
place, one of them a write, must be ordered by these clocks (the happens-before relation, as in FastTrack, Flanagan and
Freund 2009). So a missing barrier is found in whatever order the warps are run. Warps are followed, not threads: within
a warp, instructions are taken to be executed together.

An asynchronous copy may land at any time between its issue and its wait: until then nothing else may touch its target.
"""

import numpy as np
import torch

STEPS = np.arange(16)
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class ExecutionError(Exception):
    """What no GPU promises to do, or what is not modelled."""

    at: int
    """The number of the instruction."""


class PartOfAWarpError(ExecutionError):
    """An instruction of whole warps, where some threads of a warp have not come."""


class RaceError(ExecutionError):
    """Two accesses of which either may come first."""


class Clocks:
    """The vector clocks of all warps of a launch, `seen[warp, other]`."""

    def __init__(self, num_warps):
        self.seen = np.eye(num_warps, dtype=np.int32)

    def synchronize(self, warps):
        """A barrier of these warps, a slice."""
        self.seen[warps] = self.seen[warps].max(0)
        self._tick(np.arange(warps.start, warps.stop))

    def release(self, warp):
        """What this warp did, and saw, until now."""
        visible = self.seen[warp].copy()
        self._tick(warp)
        return visible

    def acquire(self, warp, visible):
        np.maximum(self.seen[warp], visible, out=self.seen[warp])

    def _tick(self, warps):
        self.seen[warps, warps] += 1


class Region:
    """Bytes that belong together: one tensor, or the shared memory of one block.

    Args:
        data: the bytes, changed in place.
        name: for messages.
        clocks: of the launch.
        warps: whose accesses are followed, a slice.
        granule: bytes of the smallest access; what lies within one is accessed together.
        initialized: whether the bytes may be read before they are written.
        races: whether to look for races and reads of what is not initialized.
        random: a numpy generator: of threads of one warp that write to one place, any may win.
    """

    def __init__(self, data, name, clocks, warps, granule, initialized, races, random):
        self.data, self.name, self.clocks, self.warps, self.granule = data, name, clocks, warps, granule
        self.random = random
        self.low, self.high, self.races = 0, len(data), races
        size = -(-len(data) // granule)
        self.writer, self.written_at = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.read_at = np.zeros((warps.stop - warps.start, size), np.int32)
        self.atomic_at = None
        self.copying, self.multiplied = np.zeros(size, np.int8), np.zeros(size, np.int32)
        self.written = None if initialized else np.zeros(size, bool)
        self.released = {}

    def _view(self, size):
        return self.data[: len(self.data) // size * size].view(UNSIGNED[size * 8])

    def _granules(self, offsets, size):
        """(lanes, granules of each), after a look at the place: inside, and at a multiple of its size."""
        if int(offsets.min()) < self.low or int(offsets.max()) + size > self.high:
            outside = offsets[(offsets < self.low) | (offsets + size > self.high)]
            raise ExecutionError(
                f"byte {int(outside[0])} is outside of {self.name}, bytes {self.low} to {self.high}"
            )
        if int(np.bitwise_or.reduce(offsets)) % size:
            raise ExecutionError(
                f"an access of {size} bytes of {self.name} at byte {int(offsets[offsets % size != 0][0])}"
            )
        return (offsets // self.granule)[:, None] + STEPS[: max(size // self.granule, 1)]

    def _ordered(self, times, granules, warps):
        """Whether all accesses of all warps, `times[warp, granule]`, are visible to the warp of each lane."""
        seen = self.clocks.seen[warps, self.warps].T
        return (times[:, granules] <= seen[:, :, None]).all()

    def _check(self, granules, warps, kind, reads=True, atomics=True):
        if not self.races or not len(granules):
            return
        if self.copying[granules].any():
            raise RaceError(f"{kind} of {self.name} where an asynchronous copy may still land")
        if (self.written_at[granules] > self.clocks.seen[warps[:, None], self.writer[granules]]).any():
            raise RaceError(f"{kind} of {self.name} that is not ordered after a write by another warp")
        if reads and self.multiplied[granules].any():
            raise RaceError(f"{kind} of {self.name} where a product may still read")
        if reads and not self._ordered(self.read_at, granules, warps):
            raise RaceError(f"{kind} of {self.name} that is not ordered after a read by another warp")
        if atomics and self.atomic_at is not None and not self._ordered(self.atomic_at, granules, warps):
            raise RaceError(f"{kind} of {self.name} that is not ordered after an atomic of another warp")

    def check_read(self, offsets, size, warps):
        """That these reads may happen now."""
        granules = self._granules(offsets, size)
        self._check(granules, warps, "read", reads=False)
        if self.races:
            if self.written is not None and not self.written[granules].all():
                raise ExecutionError(f"read of {self.name} that nothing has written")
            self.read_at[warps[:, None] - self.warps.start, granules] = self.clocks.seen[warps, warps][
                :, None
            ]

    def load(self, offsets, size, count, warps):
        """`count` numbers of `size` bytes at each offset, (lanes, count), unsigned."""
        self.check_read(offsets, size * count, warps)
        return self._view(size)[(offsets // size)[:, None] + STEPS[:count]]

    def store(self, offsets, values, warps):
        """Write `values` (lanes, count), unsigned. A store that changes no bit disturbs nobody."""
        size, count = values.dtype.itemsize, values.shape[1]
        granules = self._granules(offsets, size * count)
        view, place = self._view(size), (offsets // size)[:, None] + STEPS[:count]
        changed = (view[place] != values).any(1)
        self._check(granules[changed], warps[changed], "write")
        view[place] = values
        self._note_write(granules[changed], warps[changed])
        if lost := (view[place] != values).any(1).nonzero()[0].tolist():
            if self.races and (self.writer[granules[lost]] != warps[lost, None]).any():
                raise RaceError(f"two warps write different numbers to the same place of {self.name} at once")
            order = self.random.permutation(len(place))
            view[place[order]] = values[order]
        if self.written is not None:
            self.written[granules] = True

    def _note_write(self, granules, warps):
        self.writer[granules] = warps[:, None]
        self.written_at[granules] = self.clocks.seen[warps, warps][:, None]

    def atomic(self, offset, size, function, warp, acquires, releases):
        """Replace one number by `function` of it; returns the number before. With or without order for the rest."""
        granules, warps = self._granules(offset, size), np.array([warp])
        self._check(granules, warps, "atomic", atomics=False)
        place = int(offset[0])
        if acquires and place in self.released:
            self.clocks.acquire(warp, self.released[place])
        if self.atomic_at is None:
            self.atomic_at = np.zeros_like(self.read_at)
        self.atomic_at[warp - self.warps.start, granules] = self.clocks.seen[warp, warp]
        view = self._view(size)
        old = view[place // size].copy()
        view[place // size] = function(old)
        if releases:
            visible = self.clocks.release(warp)
            self.released[place] = np.maximum(self.released.get(place, 0), visible)
        return old

    def begin_reads(self, offsets, size):
        """From now on a product may read here."""
        np.add.at(self.multiplied, self._granules(offsets, size), 1)

    def end_reads(self, offsets, size, warps):
        """The warps that issued it have waited for it."""
        granules = self._granules(offsets, size)
        np.subtract.at(self.multiplied, granules, 1)
        self.read_at[warps[:, None] - self.warps.start, granules] = self.clocks.seen[warps, warps][:, None]

    def begin_copy(self, offsets, size, warps):
        """From now on bytes may land here."""
        granules = self._granules(offsets, size)
        self._check(granules, warps, "asynchronous copy")
        self.copying[granules] = 1

    def land(self, offsets, values):
        """The bytes of a copy (lanes, bytes) are here, though nobody knows it yet."""
        self.data[offsets[:, None] + np.arange(values.shape[1])] = values

    def end_copy(self, offsets, size, warps):
        """The warps that issued it have waited for it."""
        granules = self._granules(offsets, size)
        self.copying[granules] = 0
        self._note_write(granules, warps)
        if self.written is not None:
            self.written[granules] = True


class GlobalMemory:
    """Tensors, each at addresses of its own: nothing lies beside one."""

    SHIFT = 40

    def __init__(self, clocks, races, random):
        self.clocks, self.races, self.random, self.regions, self.storages = clocks, races, random, [], {}

    def place(self, tensor):
        """The address of a CPU tensor, which is changed in place."""
        storage = tensor.untyped_storage()
        start = tensor.data_ptr() - storage.data_ptr()
        span = (
            sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        )
        end = start + span * tensor.element_size() if tensor.numel() else start
        if storage.data_ptr() not in self.storages:
            self.storages[storage.data_ptr()] = len(self.regions)
            data = torch.empty(0, dtype=torch.uint8).set_(storage)
            warps, granule = slice(0, len(self.clocks.seen)), min(tensor.element_size(), 4)
            region = Region(
                data.numpy(), "a tensor", self.clocks, warps, granule, True, self.races, self.random
            )
            region.low, region.high = start, end
            self.regions.append(region)
        index = self.storages[storage.data_ptr()]
        region = self.regions[index]
        region.low, region.high = min(region.low, start), max(region.high, end)
        return ((index + 1) << self.SHIFT) + start

    def find(self, addresses):
        """The region of all these addresses, and the offsets there."""
        indices = addresses >> np.uint64(self.SHIFT)
        index = int(indices[0])
        if not 1 <= index <= len(self.regions) or (indices != indices[0]).any():
            raise ExecutionError(
                f"address {int(addresses[0]):#x} is in no tensor, or a warp's addresses are in several"
            )
        return self.regions[index - 1], (addresses & np.uint64((1 << self.SHIFT) - 1)).astype(np.int64)
