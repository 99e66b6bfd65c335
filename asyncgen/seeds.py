"""Numbers that depend on nothing but the run's seed and a place in the plan.

Everything random in a run is drawn here or in ``backends/sampling.py``, by hashing: there is no generator whose
state could depend on what happened before, on what else is in flight, or on a resume.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b, shake_128
from struct import unpack

__all__ = ["draw", "draw_many", "prompt_id", "sampling_seed", "story_id"]

_MASK32 = 0xFFFFFFFF


def draw(seed: int, purpose: str, *place: int) -> int:
    """A uniform 64-bit integer for ``place`` (an index, an attempt, a shuffle number ...) under ``seed``.

    ``purpose`` keeps draws apart that share a place. The same on every platform and version: BLAKE2b of the
    parts' decimal text.
    """
    return int.from_bytes(blake2b(_key(seed, purpose, place), digest_size=8).digest(), "little")


def draw_many(seed: int, purpose: str, *place: int, count: int) -> tuple[int, ...]:
    """``count`` uniform 64-bit integers for one place, by one long hash: SHAKE128 (FIPS 202) of the same text."""
    return unpack(f"<{count}Q", shake_128(_key(seed, purpose, place)).digest(8 * count))


def sampling_seed(seed: int, index: int, attempt: int) -> int:
    """The 63-bit seed (it fits a signed 64-bit tensor) from which attempt ``attempt`` >= 1 of ``index`` is sampled."""
    return draw(seed, "sampling", index, attempt) >> 1


def prompt_id(index: int) -> str:
    """``prompt_000001`` for index 0."""
    return f"prompt_{index + 1:06d}"


def _key(seed: int, purpose: str, place: tuple[int, ...]) -> bytes:
    return f"{seed}/{purpose}/{'/'.join(map(str, place))}".encode()


@lru_cache(maxsize=16)
def _story_key(seed: int) -> int:
    return draw(seed, "story_id")


def story_id(seed: int, index: int) -> str:
    """``story_`` and eight hexadecimal digits: a permutation of the 32-bit index keyed by the seed, so no two
    indices of a run share one (a hash would: 117 times in a million).

    Every step is a bijection of 32-bit integers: the mixer is MurmurHash3's fmix32 (Appleby), between key additions.
    """
    key = _story_key(seed)
    x = (index + key) & _MASK32
    x ^= x >> 16
    x = (x * 0x85EBCA6B) & _MASK32
    x ^= x >> 13
    x = (x * 0xC2B2AE35) & _MASK32
    x ^= x >> 16
    x = (x + (key >> 32)) & _MASK32
    return f"story_{x:08x}"
