"""What is counted: each figure with its name, kind, unit, labels and meaning. Data, and no code.

The page *Metrics* of the documentation is made of these tables.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

from batchstream import DeadlineError, FinishReason, RequestError, SlowConsumerError
from batchstream._batching.telemetry.step_sums import GAPS

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Names: TypeAlias = Literal["batchstream", "vllm"]

# Three for each power of ten: a quantile is off by a factor of 2.5 at most, and mostly by less.
# Closer between 2.5 and 10 seconds, where requests lie that wait for a slot. What an alert compares
# a quantile with is a bound, so that the alert is exact.
SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 3.5, 5.0, 7.0, 10.0, 25.0, 50.0, 100.0, 250.0),
)
SIZES: Final = tuple(float(2**exponent) for exponent in range(11))
OUTPUTS: Final = tuple(float(2**exponent) for exponent in range(16))

REFUSALS: Final = ("pending", "pending_cost", "tenant", "cost", "closed", "draining")

ERRORS: Final = {
    DeadlineError: "deadline",
    SlowConsumerError: "slow",
    RequestError: "request_error",
}
"""The errors that a client can bring about, each with the reason that it counts as: `error` is left
for what an operator has to look at."""

ENDS: Final = (*(reason.value for reason in FinishReason), *ERRORS.values())
"""The ways to end."""


class Figure(NamedTuple):
    """One name in the registry.

    Attributes:
        key: What is counted, as `_recorder.py` calls it.
        name: The name, without what all names begin with; `_total` is added to that of a counter.
        kind: Its type.
        unit: Of what, in words.
        meaning: What it says, in one sentence.
        labels: Its labels.
        buckets: The upper bounds of a histogram's buckets.
    """

    key: str
    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


_OF_BATCHER: Final = ("batcher",)
_OF_TENANT: Final = ("batcher", "tenant")

OWN: Final = (
    Figure(
        *("submitted", "requests_submitted", "counter", "requests"),
        "Requests that were accepted",
        _OF_TENANT,
    ),
    Figure(
        *("refused", "requests_refused", "counter", "requests"),
        "Requests that were refused; the reason says by which limit",
        (*_OF_TENANT, "reason"),
    ),
    Figure(
        *("finished", "requests_finished", "counter", "requests"),
        "Requests that have ended; the reason says how",
        (*_OF_TENANT, "reason"),
    ),
    Figure(
        *("requeued", "requests_requeued", "counter", "requests"),
        "Slots that were given back, by requests that wait again",
        _OF_TENANT,
    ),
    Figure(
        *("waiting", "requests_waiting", "gauge", "requests"),
        "Requests that wait for a batch at the moment",
        _OF_TENANT,
    ),
    Figure(
        *("running", "requests_running", "gauge", "requests"),
        "Requests that are in a batch at the moment",
        _OF_TENANT,
    ),
    Figure(
        *("state", "state", "gauge", "batchers"),
        "Batchers that are in this state: accepting, draining or closed; a series for each",
        (*_OF_BATCHER, "state"),
    ),
    Figure(
        *("slots", "slots", "gauge", "slots"),
        "Slots of a batch: max_batch_size, or its requests if that is no limit; 0 before a step",
        _OF_BATCHER,
    ),
    Figure(
        *("cache_usage", "cache_usage_ratio", "gauge", "ratio"),
        "Part of the engine's cache that is in use, if a function for it was given",
        _OF_BATCHER,
    ),
    Figure(*("steps", "steps", "counter", "steps"), "Steps that were made", _OF_BATCHER),
    Figure(
        *("outputs", "outputs", "counter", "outputs"),
        "Outputs that steps gave to requests, tokens for example",
        _OF_BATCHER,
    ),
    Figure(
        *("slot_steps", "slot_steps", "counter", "slots"),
        "Slots that steps had, added up: those of a batch for each step",
        _OF_BATCHER,
    ),
    Figure(
        *("live", "slot_steps_live", "counter", "slots"),
        "Live slots that steps were made for, added up",
        _OF_BATCHER,
    ),
    Figure(
        *("prefilling", "slot_steps_prefilling", "counter", "slots"),
        "Live slots that had had no output yet after a step, added up",
        _OF_BATCHER,
    ),
    Figure(
        *("wasted", "slot_steps_wasted", "counter", "slots"),
        "Live slots whose request had left before the step was done, added up",
        _OF_BATCHER,
    ),
    Figure(
        *("batch_size", "batch_size", "histogram", "requests"),
        "How many requests joined a batch together",
        _OF_BATCHER,
        SIZES,
    ),
    Figure(
        *("wait", "wait_seconds", "histogram", "seconds"),
        "From submission to joining a batch, of requests that joined one",
        _OF_TENANT,
        SECONDS,
    ),
    Figure(
        *("first_output", "first_output_seconds", "histogram", "seconds"),
        "From submission to the first output, of requests that had one",
        _OF_TENANT,
        SECONDS,
    ),
    Figure(
        *("gap", "gap_seconds", "histogram", "seconds"),
        "From one step to the next, counted for each slot that had an output before",
        _OF_BATCHER,
        GAPS,
    ),
    Figure(
        *("slot", "slot_seconds", "histogram", "seconds"),
        "From joining a batch to the end, of requests that ended in one",
        _OF_TENANT,
        SECONDS,
    ),
    Figure(
        *("request", "request_seconds", "histogram", "seconds"),
        "From submission to the end, of all requests that were accepted",
        _OF_TENANT,
        SECONDS,
    ),
    Figure(
        *("request_outputs", "request_outputs", "histogram", "outputs"),
        "How many outputs a request had when it ended",
        _OF_TENANT,
        OUTPUTS,
    ),
)

_OF_MODEL: Final = ("model_name",)

VLLM: Final = (
    Figure(
        *("running", "num_requests_running", "gauge", "requests"),
        "Requests that are in a batch at the moment",
        _OF_MODEL,
    ),
    Figure(
        *("waiting", "num_requests_waiting", "gauge", "requests"),
        "Requests that wait for a batch at the moment",
        _OF_MODEL,
    ),
    Figure(
        *("cache_usage", "kv_cache_usage_perc", "gauge", "ratio"),
        "Part of the engine's cache that is in use, from 0 to 1, if a function for it was given",
        _OF_MODEL,
    ),
    Figure(
        *("requeued", "num_preemptions", "counter", "requests"),
        "Slots that were given back, by requests that wait again",
        _OF_MODEL,
    ),
    Figure(
        *("prompt_tokens", "prompt_tokens", "counter", "tokens"),
        "Tokens of prompts, of requests whose end has a number as prompt_tokens in its info",
        _OF_MODEL,
    ),
    Figure(
        *("outputs", "generation_tokens", "counter", "tokens"),
        "Outputs that steps gave to requests",
        _OF_MODEL,
    ),
    Figure(
        *("finished", "request_success", "counter", "requests"),
        "Requests that have ended: stop, length, abort (cancelled) or error",
        (*_OF_MODEL, "finished_reason"),
    ),
    Figure(
        *("first_output", "time_to_first_token_seconds", "histogram", "seconds"),
        "From submission to the first output, of requests that had one",
        _OF_MODEL,
        SECONDS,
    ),
    Figure(
        *("gap", "inter_token_latency_seconds", "histogram", "seconds"),
        "From one step to the next, counted for each slot that had an output before",
        _OF_MODEL,
        GAPS,
    ),
    Figure(
        *("gap", "time_per_output_token_seconds", "histogram", "seconds"),
        "The same, by the name that vLLM had for it before",
        _OF_MODEL,
        GAPS,
    ),
    Figure(
        *("request", "e2e_request_latency_seconds", "histogram", "seconds"),
        "From submission to the end, of all requests that were accepted",
        _OF_MODEL,
        SECONDS,
    ),
    Figure(
        *("wait", "request_queue_time_seconds", "histogram", "seconds"),
        "From submission to joining a batch, of requests that joined one",
        _OF_MODEL,
        SECONDS,
    ),
    Figure(
        *("slot", "request_inference_time_seconds", "histogram", "seconds"),
        "From joining a batch to the end, of requests that ended in one",
        _OF_MODEL,
        SECONDS,
    ),
    Figure(
        *("request_outputs", "request_generation_tokens", "histogram", "tokens"),
        "How many outputs a request had when it ended",
        _OF_MODEL,
        OUTPUTS,
    ),
)

TABLES: Final[dict[Names, tuple[Figure, ...]]] = {"batchstream": OWN, "vllm": VLLM}
SEPARATORS: Final[dict[Names, str]] = {"batchstream": "_", "vllm": ":"}
"""What stands between the name of all and that of a figure."""

VLLM_REASONS: Final[dict[str, str]] = {
    FinishReason.EOS: "stop",
    FinishReason.EXHAUSTED: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.ERROR: "error",
}
"""What vLLM calls the ways to end. An error of the source is none there: `error` is one more, and
stands for the reasons in `ERRORS` as well."""


def exposed(figure: Figure, name: str, names: Names = "batchstream") -> str:
    """Return the name of a figure as a query has it; that of a histogram is without its suffix."""
    suffix = "_total" if figure.kind == "counter" else ""
    return f"{name}{SEPARATORS[names]}{figure.name}{suffix}"
