"""How many rows fit: the budget that is learnt from running out of memory, and an estimate to begin with.

Plain arithmetic, but for two questions to torch. A batch is measured in cells: rows x (padded prompt + new tokens).

What is done about memory between batches. The key-value cache belongs to one ``generate`` call and is dropped with it;
on the CPU that returns the memory, on a GPU it goes back to torch's allocator, whose blocks the next batch takes over.
Emptying the allocator after every batch would only make the next one ask for the same memory again, so that is done
in two places: after a batch did not fit (to join what is fragmented, before trying it in halves) and when the
backend is closed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch

__all__ = ["TokenBudget", "free_bytes", "is_out_of_memory", "kv_bytes_per_token", "rows_that_fit", "total_bytes"]

_CONTROL_GROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_GROW_AFTER, _GROW_AFTER_AT_MOST = 16, 256
_MAX_AUTO_ROWS = 256
_USABLE = 0.6
"""Share of the free memory that an estimate may plan with; activations and fragmentation have the rest."""


class TokenBudget:
    """The cells a batch may have: unknown (None) until one did not fit, halved then, and regrown slowly.

    Halving ends at one cell, so whoever tries again in smaller parts comes to an end. After sixteen batches in a row
    that fitted and used at least half of the budget, it grows by an eighth: what took the memory may have gone. Each
    time that growing has led to another failure, it takes twice as many batches, up to 256: it may have come to stay.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self._fitted = 0
        self._grow_after = _GROW_AFTER
        self._grown = False

    def failed(self, cells: int) -> None:
        """Records that a batch of ``cells`` did not fit."""
        self.limit = max(1, min(cells, self.limit or cells) // 2)
        self._fitted = 0
        if self._grown:
            self._grow_after = min(2 * self._grow_after, _GROW_AFTER_AT_MOST)
            self._grown = False

    def fitted(self, cells: int) -> None:
        """Records that a batch of ``cells`` fitted."""
        if self.limit is None or 2 * cells < self.limit:
            return
        self._fitted += 1
        if self._fitted >= self._grow_after:
            self.limit += max(1, self.limit // 8)
            self._fitted = 0
            self._grown = True

    def rows(self, wanted: int, cells_per_row: int) -> int:
        """``wanted``, halved until that many rows fit the budget; at least 1."""
        while self.limit is not None and wanted > 1 and wanted * cells_per_row > self.limit:
            wanted //= 2
        return wanted


def kv_bytes_per_token(*, layers: int, kv_heads: int, head_size: int, item_bytes: int) -> int:
    """Bytes that keys and values of one token take in all layers."""
    return 2 * layers * kv_heads * head_size * item_bytes


def rows_that_fit(free_bytes: int, bytes_per_row: int) -> int:
    """The largest power of two of rows that a share of ``free_bytes`` holds, from 1 to 256."""
    rows = int(free_bytes * _USABLE) // max(1, bytes_per_row)
    return 1 << (max(1, min(rows, _MAX_AUTO_ROWS)).bit_length() - 1)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: on a CUDA device, as far as torch is allowed to take it
    (``set_per_process_memory_fraction``); or of this computer, as far as limits of the process's control group (a
    container's, say) and of its address space let it be had.
    """
    if device.type == "cuda":
        left, total = torch.cuda.mem_get_info(device)
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
        return max(0, min(int(left), allowed - torch.cuda.memory_reserved(device)))
    free = [int(psutil.virtual_memory().available)]
    for limit_file, used_file in _CONTROL_GROUP_FILES:
        with suppress(OSError, ValueError):  # no limit, or no such thing here
            free.append(int(Path(limit_file).read_text()) - int(Path(used_file).read_text()))
    if (limit := _address_space()) is not None:
        free.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(free))


def total_bytes() -> int:
    """Memory that this computer has, or that the process's control group and its address space may have, if that is
    less: a number that does not change while others come and go.
    """
    total = [int(psutil.virtual_memory().total)]
    for limit_file, _ in _CONTROL_GROUP_FILES:
        with suppress(OSError, ValueError):  # no limit, or no such thing here
            total.append(int(Path(limit_file).read_text()))
    if (limit := _address_space()) is not None:
        total.append(limit)
    return min(total)


def _address_space() -> int | None:
    """The limit of the process's address space, in bytes; None if there is none."""
    try:
        import resource  # noqa: PLC0415  # there is none on Windows
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def is_out_of_memory(error: Exception) -> bool:
    """Accelerators have a type of their own for it; torch's CPU allocator and cuBLAS raise a bare RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
