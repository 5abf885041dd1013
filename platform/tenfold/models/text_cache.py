"""A memory of text embeddings that forgets what was used least lately."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor


class TextCache:
    """Rows by text, valid for one state of the model that made them.

    May be used from several threads. A copy of it (``copy.deepcopy``, pickling) starts empty.

    Args:
        capacity: Most texts that are kept, at least 1; at 512 numbers a text, 65,536 texts take 134 MB.
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
        """Forget everything."""
        with self._lock:
            self._rows.clear()

    def find(self, texts: Sequence[str], state: Hashable) -> dict[str, Tensor]:
        """The rows ``(D,)`` that are known among ``texts``; a new state of the model forgets all older rows."""
        with self._lock:
            self._become(state)
            found = {}
            for text in texts:
                if text in self._rows:
                    self._rows.move_to_end(text)
                    found[text] = self._rows[text]
            return found

    def add(self, rows: Mapping[str, Tensor], state: Hashable) -> None:
        """Keep rows ``(D,)`` by their text, and drop the oldest beyond the capacity."""
        with self._lock:
            self._become(state)
            self._rows.update(rows)
            while len(self._rows) > self.capacity:
                self._rows.popitem(last=False)

    def _become(self, state: Hashable) -> None:
        if state != self._state:
            self._rows.clear()
            self._state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return TextCache, (self.capacity,)  # a lock cannot be copied, and rows are quickly made again
