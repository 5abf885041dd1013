"""LRU cache of text embeddings."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor


class TextCache:
    """Thread-safe LRU cache of embeddings by text, valid for one state of the model that computed them.

    A copy of it (``copy.deepcopy``, pickling) starts empty.

    Args:
        capacity: Maximum number of cached texts, at least 1; at 512 numbers per text, 65,536 texts take 134 MB.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._state: Hashable = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._rows.clear()

    def find(self, texts: Sequence[str], state: Hashable) -> dict[str, Tensor]:
        """Return the cached rows ``(D,)`` among ``texts``; a new state of the model clears the cache first."""
        with self._lock:
            self._set_state(state)
            found = {}
            for text in texts:
                if text in self._rows:
                    self._rows.move_to_end(text)
                    found[text] = self._rows[text]
            return found

    def add(self, rows: Mapping[str, Tensor], state: Hashable) -> None:
        """Store rows ``(D,)`` by their text, and evict the least recently used beyond the capacity."""
        with self._lock:
            self._set_state(state)
            self._rows.update(rows)
            while len(self._rows) > self.capacity:
                self._rows.popitem(last=False)

    def _set_state(self, state: Hashable) -> None:
        if state != self._state:
            self._rows.clear()
            self._state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return TextCache, (self.capacity,)  # a lock cannot be copied, and rows are cheap to recompute
