"""What `serve.batch` gets wrong, each as a program that runs in a replica under either decorator.

Each is a coroutine function of the decorator, and returns what was seen. None waits for a time: the
event loop takes turns, more than any of them needs.
"""

import asyncio

import numpy as np

TURNS = 2_000
STEPS = 100


async def turns(count=TURNS):
    for _ in range(count):
        await asyncio.sleep(0)


async def until(is_so):
    """Take turns until something is so, which has to happen."""
    for _ in range(100 * TURNS):
        if is_so():
            return
        await asyncio.sleep(0)
    raise AssertionError("it has not happened")


async def collected(outputs):
    return [output async for output in outputs]


async def raised(awaitable):
    """Return the error that an awaitable raises."""
    try:
        await awaitable
    except BaseException as error:  # noqa: BLE001 - any is what was asked for
        return error
    raise AssertionError("it raised nothing")


async def done_of(*awaitables):
    """Return which of some awaitables are done after many turns, and cancel the others."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await turns()
    done = [task.done() for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return done


async def arrays(batch):
    """Outputs are arrays: what each caller gets, or the text of its error."""

    @batch(max_batch_size=2, batch_wait_timeout_s=0)
    async def model(sizes):
        for position in range(2):
            yield [np.arange(size) + position for size in sizes]

    try:
        found = await asyncio.gather(*(collected(model(size)) for size in (2, 3)))
    except ValueError as error:
        return str(error)
    return [[output.tolist() for output in outputs] for outputs in found]


async def mark_instance(batch):
    """The end mark is an instance of `StopIteration`: the types of what the caller gets."""

    @batch(max_batch_size=1, batch_wait_timeout_s=0)
    async def model(requests):
        yield ["output" for _ in requests]
        yield [StopIteration() for _ in requests]

    return [type(output).__name__ for output in await collected(model(0))]


class Counting:
    """A model of many steps that counts them, and knows whether its generator was closed."""

    def __init__(self, batch, steps=STEPS):
        self.steps = 0
        self.closed = False

        @batch(max_batch_size=4, batch_wait_timeout_s=0)
        async def model(lengths):
            try:
                for position in range(steps):
                    self.steps += 1
                    yield [position if position < length else StopIteration for length in lengths]
                    await asyncio.sleep(0)
            finally:
                self.closed = True

        self.model = model


async def all_finished(batch):
    """All requests have ended early: how many steps were made, four of them for a request."""
    model = Counting(batch)
    outputs = await asyncio.gather(*(collected(model.model(length)) for length in (3, 1)))
    assert outputs == [[0, 1, 2], [0]]
    await turns()
    return model.steps


async def all_cancelled(batch):
    """The only client leaves after three outputs of many: steps made, and whether it is over."""
    model = Counting(batch)

    async def client():
        async for output in model.model(STEPS):
            if output == 2:
                await asyncio.Event().wait()

    task = asyncio.ensure_future(client())
    await until(lambda: model.steps >= 3)
    task.cancel()
    await raised(task)
    await turns()
    return model.steps, model.closed


async def never_closed(batch):
    """The only client of an endless generator leaves: is the generator closed."""
    closed = []

    @batch(max_batch_size=1, batch_wait_timeout_s=0)
    async def model(requests):
        try:
            while True:
                yield ["output" for _ in requests]
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    outputs = model(0)
    assert await anext(outputs) == "output"
    await outputs.aclose()
    await turns()
    return bool(closed)


async def cancelled_in_model(batch):
    """The model lets a `CancelledError` out: which of its two callers learn that."""

    @batch(max_batch_size=2, batch_wait_timeout_s=0)
    async def model(requests):
        raise asyncio.CancelledError

    return await done_of(model(0), model(1))


async def next_after_cancelled(batch):
    """The same of a generator, and the callers come one after another."""

    @batch(max_batch_size=1, batch_wait_timeout_s=0)
    async def model(requests):
        yield requests
        raise asyncio.CancelledError

    return await done_of(collected(model(0)), collected(model(1)))


async def size_raises(batch):
    """`batch_size_fn` raises for one request: which of it and of the next are answered."""

    def size_of(items):
        if "bad" in items:
            raise KeyError("bad")
        return len(items)

    @batch(max_batch_size=4, batch_wait_timeout_s=0, batch_size_fn=size_of)
    async def model(requests):
        return requests

    return await done_of(model("bad")) + await done_of(model("good"))


async def errors_shared(batch):
    """The model raises: is the error of one caller that of the other."""

    @batch(max_batch_size=2, batch_wait_timeout_s=0)
    async def model(requests):
        raise KeyError("broken")

    first, second = await asyncio.gather(raised(model(0)), raised(model(1)))
    assert type(first) is type(second) is KeyError
    assert first.args == second.args == ("broken",)
    return first is second


async def slow_consumer(batch):
    """A client reads one output and no more: how many steps are made for it."""
    model = Counting(batch, steps=5_000)
    outputs = model.model(5_000)
    assert await anext(outputs) == 0
    await turns(20_000)
    steps = model.steps
    await outputs.aclose()
    return steps


async def backlog(batch):
    """16 requests come one by one while a batch runs: the sizes of the batches."""
    sizes = []
    gate = asyncio.Event()

    @batch(max_batch_size=8, batch_wait_timeout_s=0)
    async def model(requests):
        sizes.append(len(requests))
        await gate.wait()
        return requests

    tasks = []
    for request in range(17):
        tasks.append(asyncio.ensure_future(model(request)))
        await until(lambda: sizes)
        await turns(50)
    gate.set()
    assert await asyncio.gather(*tasks) == list(range(17))
    return sizes
