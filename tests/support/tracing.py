"""Traces that record what they are told."""

from collections import Counter

from batchstream import BatchTrace, RequestTrace, Traces


class RecordedTraces(Traces):
    """Traces that record what they are told.

    Attributes:
        names: Of the batchers that call it.
        requests: What each request was told, by its id, as tuples that begin with the method.
        batches: Each batch, in the order in which they began.
    """

    def __init__(self):
        self.names = []
        self.requests = {}
        self.batches = []

    def for_batcher(self, name):
        self.names.append(name)
        return self

    def submitted(self, request, *, request_id, **given):
        assert request_id not in self.requests
        return RecordedRequest(self.requests.setdefault(request_id, []), request_id, given)

    def joined(self, requests):
        batch = RecordedBatch([request.id for request in requests])
        self.batches.append(batch)
        return batch

    def check(self, figures):
        """Make sure that all was told once, of a batcher in which no request is left."""
        ends = Counter()
        for request, calls in self.requests.items():
            told = Counter(call[0] for call in calls)
            assert told["ended"] == 1, (request, calls)
            assert told["first_output"] <= 1, (request, calls)
            assert told["joined"] <= told["requeued"] + 1, (request, calls)
            (end,) = [call[1] for call in calls if call[0] == "ended"]
            ends[end.reason] += 1
            if end.outputs:
                assert told["first_output"] == 1, (request, calls)
        refused = len(self.requests) - figures.opened
        ends["error"] -= refused
        assert +ends == Counter(figures.finished)
        for batch in self.batches:
            assert batch.ended_times == 1, batch.requests
            assert len(batch.ends) <= len(batch.requests)
        assert len(self.batches) <= figures.batches + figures.requeued


class RecordedRequest(RequestTrace):
    def __init__(self, calls, request_id, given):
        self.calls = calls
        self.id = request_id
        self.given = given
        self.calls.append(("submitted", given))

    def joined(self, batch):
        self.calls.append(("joined", batch))

    def first_output(self):
        self.calls.append(("first_output",))

    def requeued(self):
        self.calls.append(("requeued",))

    def ended(self, end):
        self.calls.append(("ended", end))


class RecordedBatch(BatchTrace):
    def __init__(self, requests):
        self.requests = requests
        self.ends = []
        self.ended_times = 0

    def ended(self, ends):
        self.ends = list(ends)
        self.ended_times += 1
