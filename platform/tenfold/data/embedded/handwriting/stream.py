"""Random integers that are reproducible across machines and numpy versions."""

import numpy as np

from tenfold.hashing import text_sha256


class Stream:
    """Bounded integers from the raw output of a Philox generator.

    numpy guarantees a stable raw stream of a bit generator but not the distributions on top of it, so the bounding is
    done here: the high 32 bits times the span, shifted down. The bias is below span / 2**32.
    """

    def __init__(self, *key: str | int) -> None:
        """Create the stream of a key such as (task, split, block, seed); streams of different keys are independent."""
        digest = bytes.fromhex(text_sha256("/".join(map(str, key))))
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def integers(self, low: int | np.ndarray, high: int | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Draw uniform int64 in ``[low, high)``, both broadcast to ``shape``; spans up to 2**31."""
        span = np.asarray(high, dtype=np.int64) - np.asarray(low, dtype=np.int64)
        scaled = (self._words(shape) >> np.uint64(32)) * span.astype(np.uint64) >> np.uint64(32)
        return scaled.astype(np.int64) + low

    def orders(self, num_rows: int, length: int) -> np.ndarray:
        """Draw a random permutation of ``0..length-1`` in each row, int64 ``(num_rows, length)``."""
        return np.argsort(self._words((num_rows, length)), axis=1, kind="stable")

    def shorts(self, shape: tuple[int, ...]) -> np.ndarray:
        """Draw uniform uint16, four from each 64-bit word (lowest bits first)."""
        num = int(np.prod(shape))
        words = self._words((-(-num // 4),)).astype("<u8", copy=False)
        return words.view("<u2")[:num].reshape(shape)

    def _words(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._bits.random_raw(int(np.prod(shape))).reshape(shape)
