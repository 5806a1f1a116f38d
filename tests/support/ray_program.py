"""A deployment in `__main__`, as in a notebook: prints what its two replicas say."""

import json
import os
import sys

import ray
from ray import serve

import batchstream
from batchstream.integrations.ray import batch

POLLS = 500


class Sizes(batchstream.Metrics):
    seen = []

    def joined(self, waited, **_):
        self.seen.append(len(waited))


@batch(metrics=Sizes)
async def shout(words):
    return [f"{word}!" for word in words]


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class Model:
    @batch(max_batch_size=4, key=len, metrics=Sizes)
    def spell(self, words):
        for position in range(max(map(len, words)) + 1):
            yield [word[position] if position < len(word) else StopIteration for word in words]

    async def reply(self, word):
        letters = [letter async for letter in self.spell(word)]
        return os.getpid(), letters, await shout(word), len(Sizes.seen) > 0


ray.init(address=sys.argv[1], log_to_driver=False)
handle = serve.run(Model.bind(), name="program", route_prefix="/program")
replies = {}
for _ in range(POLLS):
    pid, *reply = handle.reply.remote("ab").result(timeout_s=60)
    replies[pid] = reply
    if len(replies) == 2:
        break
serve.delete("program", _blocking=False)
print(json.dumps(list(replies.values())))
