"""Queues with a limit."""

import asyncio
import threading

import pytest

from regiondh_d2.web.lanes import BusyError, Lane


@pytest.fixture
def lane():
    lane = Lane("test", threads=1, waiting=1)
    yield lane
    lane.close()


def test_results_and_errors_come_back(lane):
    async def run():
        assert await lane.run(pow, 2, 5) == 32
        with pytest.raises(ZeroDivisionError):
            await lane.run(divmod, 1, 0)

    asyncio.run(run())
    assert lane.pending == 0


def test_beyond_the_limit_it_is_busy_and_then_free_again(lane):
    go = threading.Event()

    async def run():
        waiting = [asyncio.ensure_future(lane.run(go.wait, 10)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await lane.run(int)
        go.set()
        assert await asyncio.gather(*waiting) == [True, True]
        assert await lane.run(int) == 0

    asyncio.run(run())


def test_what_is_canceled_while_it_waits_never_runs(lane):
    go, ran = threading.Event(), []

    async def run():
        first = asyncio.ensure_future(lane.run(go.wait, 10))
        second = asyncio.ensure_future(lane.run(ran.append, 1))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        assert lane.pending == 1  # its place is free
        go.set()
        await first
        assert await lane.run(int) == 0

    asyncio.run(run())
    assert ran == []
