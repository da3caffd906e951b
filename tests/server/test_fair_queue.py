"""Clients are served in turn, each in order, and never more wait than may."""

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqcli.server.fair_queue import Closed, FairQueue, Full


def filled(clients: str, limit: int = 1000) -> FairQueue:
    queue: FairQueue = FairQueue(limit)
    for number, client in enumerate(clients):
        queue.put(client, (client, number))
    return queue


def test_a_client_with_many_requests_lets_others_in():
    queue = filled("aaaabc")
    assert "".join(queue.take()[0] for _ in range(6)) == "abcaaa"


@given(st.text("abc", max_size=20))
def test_each_client_in_order_and_nobody_waits_for_more_than_one_of_each_other(clients):
    queue = filled(clients)
    taken = [queue.take() for _ in clients]
    for client in set(clients):
        own = [number for name, number in taken if name == client]
        assert own == sorted(own)
        places = [place for place, (name, _) in enumerate(taken) if name == client]
        # Between two turns of one client, each of the others has one at most.
        for begin, end in itertools.pairwise(places):
            between = [name for name, _ in taken[begin + 1 : end]]
            assert len(between) == len(set(between))
    assert len(queue) == 0


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_one_is_at_work_and_so_many_wait(limit):
    queue = filled("a" * (limit + 1), limit)
    with pytest.raises(Full):
        queue.put("b", "x")
    queue.take()
    assert len(queue) == limit
    with pytest.raises(Full):
        queue.put("b", "x")


def test_remove():
    queue = filled("aab")
    assert queue.remove("a", ("a", 0))
    assert not queue.remove("a", ("a", 0))
    assert not queue.remove("z", ("z", 9))
    assert [queue.take() for _ in range(2)] == [("a", 1), ("b", 2)]


def test_closed():
    queue = filled("ab")
    assert queue.close() == [("a", 0), ("b", 1)]
    with pytest.raises(Closed):
        queue.take()
    with pytest.raises(Closed):
        queue.put("a", "x")


def test_who_waits_is_woken():
    for act in (lambda queue: queue.put("a", "item"), lambda queue: queue.close()):
        queue: FairQueue = FairQueue(1)
        found: list = []

        def take(queue=queue, found=found) -> None:
            try:
                found.append(queue.take())
            except Closed:
                found.append("closed")

        thread = threading.Thread(target=take)
        thread.start()
        act(queue)
        thread.join(timeout=10)
        assert found in (["item"], ["closed"])
