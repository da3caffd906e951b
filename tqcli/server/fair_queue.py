"""A bounded queue that serves clients in turn: who sends many requests waits for his own, others do not.

Several threads may put, one takes. Within one client the first comes first.
"""

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Full(Exception):
    """As many are waiting as may wait."""


class Closed(Exception):
    """Nothing is taken any more."""


class FairQueue(Generic[Item]):
    """Items of several clients."""

    def __init__(self, limit: int) -> None:
        """limit: how many items may wait, of all clients together, besides the one that is being worked on."""
        self._limit = limit
        # The first client is the next one to be served.
        self._clients: OrderedDict[str, deque[Item]] = OrderedDict()
        self._length = 0
        # Whether who takes is at work on an item, or is about to be given one.
        self._busy = False
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return self._length

    def put(self, client: str, item: Item) -> None:
        """Raises Full, or Closed."""
        with self._changed:
            if self._closed:
                raise Closed
            if self._length + self._busy > self._limit:
                raise Full
            self._clients.setdefault(client, deque()).append(item)
            self._length += 1
            self._changed.notify()

    def take(self) -> Item:
        """The next item, the one before being done; waits for one. Raises Closed once the queue is closed and empty."""
        with self._changed:
            self._busy = False
            self._changed.wait_for(lambda: self._length or self._closed)
            if not self._length:
                raise Closed
            client, items = self._clients.popitem(last=False)
            item = items.popleft()
            if items:
                self._clients[client] = items
            self._length -= 1
            self._busy = True
            return item

    def remove(self, client: str, item: Item) -> bool:
        """Whether the item was still waiting; it is not any more."""
        with self._changed:
            items = self._clients.get(client)
            if items is None or item not in items:
                return False
            items.remove(item)
            if not items:
                del self._clients[client]
            self._length -= 1
            return True

    def close(self) -> list[Item]:
        """Take nothing more, and give back what was waiting."""
        with self._changed:
            self._closed = True
            left = [item for items in self._clients.values() for item in items]
            self._clients.clear()
            self._length = 0
            self._changed.notify_all()
            return left
