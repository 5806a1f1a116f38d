"""A batch whose slots an engine refills between two steps, and takes back where it has to.

Theory of operation
-------------------

Before each step, `refill` removes from the engine what has left its slot, and adds the requests
that join. The first request of the queue may have to wait although a slot is free, and then none
behind it is added either: because the engine has no room for it, or because it was given back. What
the engine refuses is put back in front of all others. So where requests have priorities or tenants
each is taken from the queue when the one before is in the engine, see
`BatcherOptions.joins_one_by_one`.

A request that the engine gives back, with `Requeue`, waits in the queue in front of all others. It
would be given back again if nothing changed. So it is added again once another request has left
the engine; and where none is left in it, the oldest joins alone. One that gets no output even then,
twice in a row, fails. So in an engine that gives back what it likes the oldest request still comes
to its end, and then the next.

The thread of the batch alone gives a slot back. Another thread may end the request meanwhile: up to
`Fanout.release` it does so by way of the pump, and then as that of a request that waits. In between
it finds neither, and looks again: see `Ends.cancel`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import TypeVar

from batchstream._batching.batches.request_batch import RequestBatch
from batchstream._batching.requests.request import closed_error
from batchstream._core.cores import requeued_in
from batchstream._core.errors import RequestError, SourceError
from batchstream._core.markers import SAME
from batchstream._core.records import FinishReason, StreamEnd
from batchstream._handoff.buffer import Buffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchstream._batching.batches.request_batch import BatchOwner
    from batchstream._batching.engine import Engine
    from batchstream._batching.requests.request import Request, Submission
    from batchstream._core.markers import Requeue

T = TypeVar("T")

VACANCY: Final[Buffer[Any]] = Buffer(-1)
"""Stands for the occupant of a slot that has none, in any number of slots and batches."""

VACANCY.finish(StreamEnd(FinishReason.EXHAUSTED, 0))


class EngineBatch(RequestBatch[T]):
    """A batch that requests join and leave while it runs, until none is live or waits.

    Args:
        owner: Whose requests they are.
        engine: The engine, which is the pump's source.
        requests: The first requests to join.
    """

    def __init__(
        self, owner: BatchOwner[T], engine: Engine, requests: Sequence[Request[T]]
    ) -> None:
        super().__init__(owner)
        self._engine = engine
        # The lowest slot comes last, and is taken first.
        self._free = list(reversed(range(owner.options.slots or 0)))
        # Of the requests in the engine, by slot. What was submitted is kept for a slot that is
        # given back; the costs apart, for they are added up at each step.
        self._submissions: dict[int, Submission] = {}
        self._costs: dict[int, float] = {}
        self._joining = deque(requests)
        # The first of the queue, if it has to wait although there is a free slot.
        self._first: Request[T] | None = None
        self._has_step_costs = owner.options.step_cost is not None
        self._step_spent: float | None = None  # what the next step costs; None if not asked yet

    @property
    def free_slots(self) -> int:
        """How many requests may join before the next step."""
        return 0 if self._is_held_up or self.is_warm_up else self._most_joining

    @property
    def _most_joining(self) -> int:
        """How many free slots may be used: not all if `max_batch_size` was lowered."""
        unused = (self._owner.options.slots or 0) - self._limits.now.max_batch_size
        return max(len(self._free) - unused, 0)

    @property
    def _is_held_up(self) -> bool:
        """Whether the first request of the queue waits for the engine, and is not added now."""
        first = self._first
        return first is not None and not first.ends and self._engine.is_full

    def refill(self) -> tuple[int, ...]:
        """Remove requests that have ended, add requests that join, and return the live slots."""
        owner, core = self._owner, self.pump.fanout.core
        if owner.scheduler.ended_requests:
            owner.reap()
        self._step_spent = behind = None
        if self._costs:
            live = core.live
            if not live and not core.running:  # it was fed what is no step
                self.failed()
                return ()
            if len(live) < len(self._costs):
                behind = self._vacate(live)
        if not self._is_held_up:
            self._first = None  # it may have ended, and is kept no longer
        # Asked without the lock: a request that comes a moment later joins before the step after.
        if self._joining or (self._free and owner.scheduler.queue):
            self._join(alone=behind is not None)
        if behind is not None and self._costs:
            self._hold_up(behind)
        return core.live

    def _join(self, *, alone: bool) -> None:
        """Add the requests that were taken, or take others and add them, up to one that waits.

        Args:
            alone: Whether only one is to be taken.
        """
        joined: list[Request[T]] = []
        one_by_one = self._owner.options.joins_one_by_one
        # One for each slot, also if it fails: else many that do would hold up the next step.
        rounds = len(self._free) if one_by_one and not alone else 1
        try:
            for _ in range(rounds):
                if not (self._joining or self._take_joining(only_one=alone or one_by_one)):
                    break
                self._add_joining(joined)
        finally:
            if joined:
                self._owner.count_joined(joined)

    def _take_joining(self, *, only_one: bool) -> bool:
        """Take requests that join now, and return whether there are any."""
        if self.is_warm_up or self._first is not None:
            return False
        slots = min(self._most_joining, 1) if only_one else self._most_joining
        if slots < 1:
            return False
        spent: float | None = None
        if self._costs:
            spent = sum(self._costs.values())
            if self._has_step_costs and self._step_spent is None:
                self._step_spent = sum(map(self._step_cost, self._costs))
        self._joining.extend(self._owner.take_joining(slots, spent, self._step_spent))
        return bool(self._joining)

    def _vacate(self, live: Sequence[int]) -> Request[T] | None:
        """Remove from the engine what has left its slot, and let wait again what was given back.

        Returns:
            The second of the requests that wait again, if the first is to be alone in the engine.
        """
        requeued = requeued_in(self.pump.fanout.core)
        waiting, back = self._requeue(requeued) if requeued else ((), 0)
        left = self._engine.keep(live)
        for slot in left:
            self._free.append(slot)
            del self._costs[slot], self._submissions[slot]
        self._owner.ends.tell_of_room()  # though none may join in these slots, as it costs too much
        if waiting and back == len(left):  # no other has left: the engine would give it back again
            if self._costs:
                self._hold_up(waiting[0])
            elif len(waiting) > 1:
                return waiting[1]
        return None

    def _hold_up(self, request: Request[T]) -> None:
        """Let the first request of the queue wait until another has left the engine."""
        self._first = request
        self._engine.is_full = True

    def _requeue(self, requeued: dict[int, Requeue]) -> tuple[Sequence[Request[T]], int]:
        """Let the requests wait again that the last step has given back.

        Returns:
            All that wait again, in their order; and how many slots were given back.
        """
        back: list[tuple[Request[T], Submission]] = []
        try:
            for slot, marker in requeued.items():
                request: Any = self.pump.fanout.buffers[slot]
                if not request.ends:  # meanwhile
                    back.append((request, self._submissions[slot]))
                    self._give_back(slot, request)
                    if marker.request is not SAME:
                        back[-1] = request, self._changed(request, slot, marker.request)
                    request.is_kept = marker.request is SAME and request.given_before > 0
            return self._owner.requeue(back), len(requeued)
        except BaseException as error:
            self._owner.fail_all([request for request, _ in back], error)
            raise
        finally:
            requeued.clear()

    def _give_back(self, slot: int, request: Request[T]) -> None:
        """Take out of its slot a request that has no end."""
        fanout = self.pump.fanout
        given = fanout.core.given(slot)
        stalls = len(self._costs) == 1 and given == request.given_before
        fails = stalls and request.stalled
        request.stalled = stalls
        request.given_before = given
        self._unseat(request)
        # From here on another thread that ends it does so as if it had joined no batch.
        request.pump = None
        fanout.release(slot, VACANCY)
        if fails:
            self._owner.fail_all([request], stalled_error())

    def _changed(self, request: Request[T], slot: int, content: Any) -> Submission:
        """Return what was submitted with what the engine wants in place of it."""
        submission = self._submissions[slot]
        step_cost = submission.step_cost
        if self._has_step_costs:
            try:
                # If it is more than that, it joins when no other is in the engine.
                step_cost = self._engine.run(self._owner.options.first_step_of, content)
            except BaseException as error:  # noqa: BLE001 - fails this request alone
                self._owner.fail_all([request], error)
        return submission._replace(content=content, step_cost=step_cost)

    def _step_cost(self, slot: int) -> float:
        cost = self._engine.step_cost(slot)
        if cost is not None:
            return cost
        fanout = self.pump.fanout
        request: Any = fanout.buffers[slot]
        is_prefilling = fanout.core.given(slot) == request.given_before
        return self._submissions[slot].step_cost if is_prefilling else 1.0

    def _add_joining(self, joined: list[Request[T]]) -> None:
        """Add the requests that were taken, up to one that has to wait.

        Args:
            joined: Gets the requests that are in the engine then.
        """
        joining = self._joining
        while joining:
            request = joining.popleft()
            if self._add(request):
                joined.append(request)
            elif not request.ends:
                self._first = request
                joining.appendleft(request)
                self._owner.put_back(joining)
                joining.clear()

    def _add(self, request: Request[T]) -> bool:
        """Add a request, and return whether it has joined; if not, it has failed or has to wait."""
        if request.ends or self._owner.scheduler.state == "closed":  # the engine need not see it
            self._owner.fail_all([request], closed_error(self._owner.scheduler.closing))
            return False
        submission = request.submission
        slot = self._free.pop()
        try:
            if not self._engine.add(slot, submission.content):
                self._free.append(slot)
                return False
        except BaseException as error:  # noqa: BLE001 - fails this request alone
            self._free.append(slot)
            self._owner.fail_all([request], error)
            return False
        self._costs[slot] = submission.cost
        self._submissions[slot] = submission
        if self._step_spent is not None:
            self._step_spent += submission.step_cost
        request.slot = slot  # before it is one of the pump's buffers, which others may end by slot
        self.pump.fanout.occupy(
            slot,
            request,
            submission.max_outputs,
            submission.is_eos,
            submission.decoder,
            given=request.given_before,
        )
        self._seat(slot, request)
        return True

    def failed(self) -> None:
        """Discard an engine that has failed in a step."""
        if self._engine.can_be_made:
            self._owner.log.engine_discarded()
            kept = [it for it in list(self._owner.scheduler.requeued) if it.is_kept]
            self._owner.fail_all(kept, forgotten_error())
        self._engine.discard()

    def drained(self) -> None:
        """Fail the requests that were to join: none, unless the batch itself has failed."""
        self._owner.fail_all(self._joining, SourceError("the batch has ended unexpectedly"))


def forgotten_error() -> SourceError:
    """Return the error of a request of which nothing knows any more how far it has come."""
    return SourceError(
        "the engine was discarded, as a step of it has failed, and it alone knew how to go on with "
        "this request, whose slot it had given back: submit the request again, or let the engine "
        "give slots back with Requeue(request), which says what to add to another engine"
    )


def stalled_error() -> RequestError:
    """Return the error of a request that is given back for ever."""
    return RequestError(
        "the request can never be served: the engine has given its slot back twice without an "
        "output, although no other request was in the engine"
    )
