"""The embeddings of one pass over an evaluation set, on the device that made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class HeldEmbeddings(Mapping[str, Tensor]):
    """Embeddings (N, D_m) by modality, which stay on the device of the model.

    Batches are kept as they come and put together when a modality is first read, so that nothing is copied that nobody
    reads. Rows that lack a modality are NaN, and all rows of one that was not run. bfloat16 is read as float32, which
    is what `transformers.Trainer` makes of it.

    Args:
        widths: D_m by modality of the model.
        accumulation_steps: after so many batches they move to the CPU; None for never.
    """

    def __init__(self, widths: Mapping[str, int], accumulation_steps: int | None = None) -> None:
        self._widths = dict(widths)
        self._accumulation_steps = accumulation_steps
        self._batches: dict[str, list[Tensor]] = {}

    def add(self, batch: Mapping[str, Tensor]) -> None:
        """Add the rows (B, D_m) of the next batch, by modality that was run."""
        for name, rows in batch.items():
            self._batches.setdefault(name, []).append(_with_own_memory(rows))
        steps = self._accumulation_steps
        if steps is not None and max(map(len, self._batches.values()), default=0) % steps == 0:
            self._batches = {name: [rows.cpu() for rows in parts] for name, parts in self._batches.items()}

    @property
    def is_empty(self) -> bool:
        """Whether there is no batch, so that nothing can be read."""
        return not self._batches

    def dropped(self) -> HeldEmbeddings:
        """The same modalities without their embeddings."""
        return HeldEmbeddings(self._widths)

    def move_to_cpu(self) -> None:
        """Free the memory of the device, if they are on one."""
        for name, parts in self._batches.items():
            if parts[0].device.type != "cpu":
                self._batches[name] = [self[name].cpu()]

    def __getitem__(self, name: str) -> Tensor:
        width = self._widths[name]
        if self.is_empty:
            raise ValueError(f"the embeddings of {name!r} were not kept; evaluate the rows again.")
        parts = self._batches.get(name)
        if parts is None:
            others = next(iter(self._batches.values()))
            return others[0].new_full((sum(map(len, others)), width), torch.nan)
        if len(parts) > 1 or parts[0].dtype == torch.bfloat16:
            if len({rows.device for rows in parts}) > 1:
                # The latest batches have not moved yet.
                parts = [rows.cpu() for rows in parts]
            rows = torch.cat(parts)
            self._batches[name] = [rows.float() if rows.dtype == torch.bfloat16 else rows]
        return self._batches[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._widths

    def __iter__(self) -> Iterator[str]:
        return iter(self._widths)

    def __len__(self) -> int:
        return len(self._widths)


def _with_own_memory(rows: Tensor) -> Tensor:
    """The same values in memory that holds nothing else.

    A view, as of one position of a sequence, would keep the whole from being freed; and an encoder may return its
    inputs, which the worker of a loader has put into shared memory, of which a process may have few pieces.
    """
    rows = rows.contiguous()
    is_view = rows.untyped_storage().nbytes() > rows.nbytes
    return rows.clone() if is_view or (rows.device.type == "cpu" and rows.is_shared()) else rows
