"""Calls that travel together to the replicas of a model."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from serve.clients.gathering import Gatherer, brings_texts
from serve.contract import Answer, Budget, Call, Failure, RefusedError


def call(number, **params):
    return Call(inputs={"images": np.full((1, 2), number, np.float32)}, params=params)


def number_of(item):
    return int(item[0].inputs["images"][0, 0])


class Replicas:
    """Records what is sent; answers when told to."""

    def __init__(self, num=1, **options):
        self.num, self.sent, self.open = num, [], asyncio.Event()
        options = {"max_calls": 8, "max_waiting": 100} | options
        self.gatherer = Gatherer(self.send, lambda: self.num, name="m", retry_after_s=3, **options)

    async def send(self, items):
        self.sent.append([number_of(item) for item in items])
        await self.open.wait()
        return [self.reply(item) for item in items]

    def reply(self, item):
        if item[0].params.get("broken"):
            return Failure("the predictor failed")
        if item[0].params.get("refused"):
            return RefusedError(422, "no", "tensor")
        return Answer(version="1", outputs={"number": item[0].inputs["images"][:, 0]})

    def start(self, *calls):
        return [asyncio.create_task(self.gatherer.ask((one, "1", None))) for one in calls]

    async def finish(self, tasks):
        self.open.set()
        return await asyncio.gather(*tasks, return_exceptions=True)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def run(coroutine):
    return asyncio.run(coroutine)


def test_calls_that_come_while_the_replica_is_busy_travel_together_and_get_their_own_answers():
    async def scene():
        replicas = Replicas()
        tasks = replicas.start(*(call(number) for number in range(12)))
        await settle()
        assert replicas.sent == [[0], [1]]  # one that is answered, one that is there when it is
        replies = await replicas.finish(tasks)
        assert [int(reply.outputs["number"][0]) for reply in replies] == list(range(12))
        assert replicas.sent[2:] == [[2, 3, 4, 5, 6, 7, 8, 9], [10, 11]]

    run(scene())


def test_more_replicas_take_more_messages():
    async def scene():
        replicas = Replicas(num=3)
        tasks = replicas.start(*(call(number) for number in range(8)))
        await settle()
        assert len(replicas.sent) == 6
        await replicas.finish(tasks)

    run(scene())


def test_calls_with_other_parameters_travel_apart_in_their_order():
    async def scene():
        replicas = Replicas()
        tasks = replicas.start(call(0), call(1), call(2), call(3, explain=True), call(4), call(5, explain=True))
        await settle()
        await replicas.finish(tasks)
        assert replicas.sent[2:] == [[2, 4], [3, 5]]

    run(scene())


def test_large_calls_travel_in_several_messages():
    async def scene():
        replicas = Replicas()
        large = np.zeros((1, 5 * 2**18), np.float32)  # 5 MiB
        tasks = replicas.start(*(Call(inputs={"images": large}) for _ in range(5)))
        await settle()
        await replicas.finish(tasks)
        assert [len(sent) for sent in replicas.sent] == [1] * 5

    run(scene())


def test_who_fails_or_is_refused_does_so_alone():
    async def scene():
        replicas = Replicas(max_calls=8)
        tasks = replicas.start(call(0), call(1), call(2), call(3, broken=1), call(4, broken=1), call(5, refused=1))
        good, _, also, *bad, refused = await replicas.finish(tasks)
        assert isinstance(good, Answer)
        assert isinstance(also, Answer)
        assert [str(one) for one in bad] == ["the predictor failed"] * 2
        assert isinstance(refused, RefusedError)

    run(scene())


def test_an_error_of_the_message_reaches_all_of_its_calls_and_the_next_are_sent():
    async def scene():
        replicas = Replicas()

        async def lost(items):
            replicas.sent.append(len(items))
            if len(replicas.sent) < 3:
                raise ConnectionError("gone")
            return [replicas.reply(item) for item in items]

        replicas.gatherer._send = lost
        replies = await replicas.finish(replicas.start(call(0), call(1), call(2)))
        assert [type(reply) for reply in replies] == [ConnectionError, ConnectionError, Answer]

    run(scene())


def test_too_many_that_wait_are_refused_at_once():
    async def scene():
        replicas = Replicas(max_waiting=2)
        tasks = replicas.start(*(call(number) for number in range(5)))
        await settle()
        with pytest.raises(RefusedError, match="as many requests waiting as it takes") as refused:
            await tasks[4]
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "3"})
        await replicas.finish(tasks)

    run(scene())


def test_a_call_whose_client_has_gone_is_not_sent():
    async def scene():
        replicas = Replicas()
        tasks = replicas.start(*(call(number) for number in range(5)))
        await settle()
        tasks[3].cancel()
        await replicas.finish(tasks)
        assert replicas.sent[2:] == [[2, 4]]

    run(scene())


def test_a_replica_that_hangs_does_not_keep_its_place():
    async def scene():
        replicas = Replicas()
        late = [replace(call(number), budget=Budget(deadline=time.time() + 0.05)) for number in range(2)]
        tasks = replicas.start(*late, call(2))
        replies = await asyncio.wait_for(asyncio.gather(*tasks[:2], return_exceptions=True), 10)
        assert [type(reply) for reply in replies] == [TimeoutError, TimeoutError]
        assert replicas.sent == [[0], [1], [2]]
        await replicas.finish(tasks[2:])

    run(scene())


def test_texts_are_recognised():
    assert brings_texts(Call(inputs={"classes": np.array(["a"], object)}))
    assert not brings_texts(call(1))
