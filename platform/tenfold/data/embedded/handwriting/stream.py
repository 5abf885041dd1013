"""Random integers that are the same on every machine and under every numpy version."""

import numpy as np

from tenfold.hashing import text_sha256


class Stream:
    """Bounded integers made from the raw words of a Philox generator.

    numpy promises stable raw words of a bit generator but not of the distributions on top of it, so the bounding is
    done here: the high 32 bits times the span, shifted down. The bias is below span / 2**32.
    """

    def __init__(self, *key: str | int) -> None:
        """Streams of different keys are independent; the key names what is drawn (task, split, block, seed)."""
        digest = bytes.fromhex(text_sha256("/".join(map(str, key))))
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def integers(self, low: int | np.ndarray, high: int | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform int64 in ``[low, high)``, both broadcast to ``shape``; spans up to 2**31."""
        span = np.asarray(high, dtype=np.int64) - np.asarray(low, dtype=np.int64)
        scaled = (self._words(shape) >> np.uint64(32)) * span.astype(np.uint64) >> np.uint64(32)
        return scaled.astype(np.int64) + low

    def orders(self, num_rows: int, length: int) -> np.ndarray:
        """A random permutation of ``0..length-1`` in each row, int64 ``(num_rows, length)``."""
        return np.argsort(self._words((num_rows, length)), axis=1, kind="stable")

    def _words(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._bits.random_raw(int(np.prod(shape))).reshape(shape)
