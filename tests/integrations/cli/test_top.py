"""What `top` makes of metrics pages: no server, no terminal, no clock."""

import io
import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from batchstream import FinishReason, StreamEnd
from batchstream._cli.errors import CommandError
from batchstream._cli.top.changes import History, quantile
from batchstream._cli.top.fetch import page_address
from batchstream._cli.top.page import read_page
from batchstream._cli.top.show import Picture, lines
from batchstream._cli.top.view import views
from batchstream.integrations.prometheus import PrometheusMetrics

ADDRESS = "http://127.0.0.1:8000/metrics"


def history(*pages, seconds=1.0):
    """Return the history of pages that were read one after the other."""
    found = History()
    for number, page in enumerate(pages):
        found.add(read_page(page, number * seconds, ADDRESS))
    return found


def view(*pages, seconds=1.0):
    [found] = views(history(*pages, seconds=seconds))
    return found


def page(figures, prefix="batchstream_"):
    """Return a page with these figures, and with the figures that every batcher has."""
    needed = {"requests_submitted_total": 0, "steps_total": 0}
    return "".join(f"{prefix}{name} {value}\n" for name, value in (needed | figures).items())


# ---- the page of PrometheusMetrics


class Recorded:
    """A page of metrics that a test leads."""

    def __init__(self, *names, **options):
        self.registry = CollectorRegistry()
        metrics = PrometheusMetrics(registry=self.registry, **options)
        self.batchers = [metrics.for_batcher(name) for name in names]

    def page(self):
        return generate_latest(self.registry).decode()


def work(batcher, tenant=None):
    """Let a batcher do something of every kind."""
    for _ in range(5):
        batcher.submitted(tenant=tenant)
    batcher.refused("pending", tenant=tenant)
    batcher.joined([0.5, 0.5, 0.5], tenants=[tenant] * 3)
    batcher.first_output(0.75, tenant=tenant)
    for _ in range(10):
        batcher.stepped(3, 4, outputs=2, gap=0.02, going_on=2, prefilling=1, wasted=1)
    end = StreamEnd(FinishReason.EOS, 40)
    batcher.finished(end, joined=True, lasted=2.0, in_slot=1.5, tenant=tenant)


def test_a_page_of_prometheus_metrics_is_shown_figure_by_figure():
    recorded = Recorded("chat", cache_usage=lambda: 0.25)
    before = recorded.page()
    work(recorded.batchers[0])
    assert list(lines(views(history(before, recorded.page(), seconds=2.0)))) == [
        "chat",
        "  slots         #+..  2 of 4 running, about 1 of them prefilling",
        "  waiting       2",
        "  per second    2.5 requests  10.0 outputs  5.0 steps",
        "  occupancy     75% of the slots in each step, 33.3% of it for requests that had left",
        "  cache         25% in use",
        "  first output  p50 750 ms  p95 975 ms",
        "  gap           p50 17.5 ms  p95 19.8 ms",
        "  in the queue  p50 375 ms  p95 487 ms",
        "  in a slot     p50 1.75 s  p95 2.42 s",
        "  whole request p50 1.75 s  p95 2.42 s",
        "  refused       1  max_pending 1  0.5 per second",
        "  ended         eos 1",
    ]


def test_a_page_with_the_names_of_vllm_is_shown_as_far_as_it_goes():
    recorded = Recorded("chat", names="vllm")
    before = recorded.page()
    work(recorded.batchers[0])
    assert list(lines(views(history(before, recorded.page(), seconds=2.0)))) == [
        "chat",
        "  slots         ##  2 running",
        "  waiting       2",
        "  per second    0.5 requests  10.0 outputs  - steps",
        "  first output  p50 750 ms  p95 975 ms",
        "  gap           p50 17.5 ms  p95 19.8 ms",
        "  in the queue  p50 375 ms  p95 487 ms",
        "  in a slot     p50 1.75 s  p95 2.42 s",
        "  whole request p50 1.75 s  p95 2.42 s",
        "  ended         stop 1",
    ]


def test_a_batcher_that_has_the_names_of_vllm_as_well_is_shown_once():
    registry = CollectorRegistry()
    for names in ("vllm", "batchstream"):
        PrometheusMetrics(registry=registry, names=names).for_batcher("chat").submitted()
    PrometheusMetrics("other", registry=registry, names="vllm").for_batcher("draft").submitted()
    batchers = history(generate_latest(registry).decode()).last().batchers
    assert {name: "steps" in figures for name, figures in batchers.items()} == {
        "chat": True,
        "draft": False,
    }


def test_a_slot_that_was_given_back_is_shown():
    recorded = Recorded("chat")
    work(recorded.batchers[0])
    recorded.batchers[0].requeued()
    shown = list(lines(views(history(recorded.page()))))
    assert shown[-1] == "  given back    1, by requests that wait again"


def test_batchers_are_told_apart_by_their_names():
    recorded = Recorded("short", "long")
    recorded.batchers[0].submitted()
    found = {each.name: each.waiting for each in views(history(recorded.page()))}
    assert found == {"long": 0, "short": 1}


def test_batchers_of_one_name_are_told_apart_by_what_their_metrics_begin_with():
    registry = CollectorRegistry()
    for name in ("first", "second"):
        PrometheusMetrics(name, registry=registry).for_batcher("chat").submitted()
    found = views(history(generate_latest(registry).decode()))
    assert [each.name for each in found] == ["first chat", "second chat"]


def test_tenants_of_prometheus_metrics_are_shown():
    recorded = Recorded("chat")
    recorded.batchers[0].submitted()
    assert views(history(recorded.page()))[0].tenants == ()
    work(recorded.batchers[0], "acme")
    shown = list(lines(views(history(recorded.page(), recorded.page()))))
    assert shown[-2:] == [
        "  no tenant     0 running  1 waiting  0.0 requests/s  0.0 outputs/s  0 refused",
        "  tenant acme   2 running  2 waiting  0.0 requests/s  0.0 outputs/s  1 refused",
    ]


@pytest.mark.parametrize("label", ["batcher", "model_name"])
def test_batchers_of_one_name_are_told_apart_by_a_label(label):
    figures = {
        f'{figure}{{{label}="{name}"}}': value
        for figure in ("requests_submitted_total", "steps_total", "requests_waiting")
        for name, value in (("a", 3), ("b", 4))
    }
    text = "".join(f"batchstream_{name} {value}\n" for name, value in figures.items())
    found = {each.name: each.waiting for each in views(history(text))}
    assert found == {"a": 3, "b": 4}


VLLM = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 500.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 7.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="tiny"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 10.0
vllm:time_per_output_token_seconds_bucket{le="+Inf",model_name="tiny"} 10.0
vllm:inter_token_latency_seconds_bucket{le="+Inf",model_name="tiny"} 10.0
"""


def test_a_page_of_vllm_is_read_too():
    shown = list(lines(views(history(VLLM))))
    assert shown == [
        "tiny",
        "  slots         ###  3 running",
        "  waiting       2",
        "  per second    - requests  - outputs  - steps",
        "  first output  p50 100 ms  p95 100 ms  since the start",
        "  gap           p50 0 ms  p95 0 ms  since the start",
        "  ended         length 2  stop 7",
    ]


def test_a_histogram_that_is_there_by_two_names_counts_once():
    [name] = history(VLLM).last().batchers
    gaps = history(VLLM).changes(name).now["gap"]
    assert list(gaps.values()) == [10.0]


# ---- changes


def test_a_counter_that_has_become_less_has_begun_anew():
    pages = [page({"steps_total": steps}) for steps in (100, 10, 30)]
    assert view(*pages).steps == (10 + 20) / 2


def test_a_batcher_that_has_just_appeared_has_no_rates():
    other = page({"steps_total": 7}, "other_")
    found = history(page({}), page({}) + other)
    assert {each.name: each.steps for each in views(found)} == {"batchstream": 0, "other": None}


def test_a_batcher_that_has_gone_is_not_shown():
    found = history(page({}) + page({}, "other_"), page({}))
    assert [each.name for each in views(found)] == ["batchstream"]


def test_rates_are_of_the_last_seconds():
    found = History(window=10.0)
    for second in range(100):
        steps = 1000 * second if second < 50 else 50_000 + second - 50
        found.add(read_page(page({"steps_total": steps}), float(second), ADDRESS))
    assert views(found)[0].steps == 1.0


def test_times_are_of_the_window_or_else_since_the_start():
    def waits(low, high):
        buckets = {'wait_seconds_bucket{le="1"}': low, 'wait_seconds_bucket{le="2"}': high}
        return page(buckets | {'wait_seconds_bucket{le="+Inf"}': high})

    [recent] = view(waits(100, 100), waits(100, 200)).times
    assert (recent.half, recent.recent) == (1.5, True)
    [all_] = view(waits(100, 200), waits(100, 200)).times
    assert (all_.half, all_.recent) == (1.0, False)


QUANTILES = {
    "in the first bucket, from 0": (0.5, {1.0: 10, 2.0: 10, float("inf"): 10}, 0.5),
    "in the middle": (0.75, {1.0: 5, 2.0: 10, float("inf"): 10}, 1.5),
    "on a bound": (0.5, {1.0: 5, 2.0: 10, float("inf"): 10}, 1.0),
    "an empty bucket is passed over": (0.5, {1.0: 0, 2.0: 0, 4.0: 10, float("inf"): 10}, 3.0),
    "beyond the last bound": (0.95, {1.0: 5, 2.0: 5, float("inf"): 10}, 2.0),
    "nothing was observed": (0.5, {1.0: 0, float("inf"): 0}, None),
    "no buckets": (0.5, {}, None),
}


@pytest.mark.parametrize(("share", "counts", "expected"), QUANTILES.values(), ids=QUANTILES)
def test_a_quantile_is_what_prometheus_estimates(share, counts, expected):
    assert quantile(share, counts) == expected


# ---- the picture of the slots


def slots_of(figures):
    [row] = [line for line in lines([view(page(figures))]) if line.startswith("  slots")]
    return row.removeprefix("  slots").strip()


def test_slots_are_running_prefilling_or_free():
    figures = {"requests_running": 5, "slots": 8}
    steps = {"slot_steps_live_total": 50, "slot_steps_prefilling_total": 20}
    before, after = page(figures), page(figures | steps)
    [_, row, *_] = lines([view(before, after)])
    assert row.endswith("###++...  5 of 8 running, about 2 of them prefilling")


def test_many_slots_share_a_cell():
    text = slots_of({"requests_running": 100, "slots": 256})
    assert text == "#" * 25 + "." * 39 + "  100 of 256 running; a cell is 4 slots"


def test_the_batches_of_several_workers_have_slots_each():
    figures = {"requests_live": 7, "requests_waiting": 1, "steps_total": 10}
    assert slots_of(figures | {"slot_steps_total": 40}) == "######..  6 of 8 running"


def test_a_batcher_that_has_made_no_step_does_not_say_how_many_slots_it_has():
    assert slots_of({"requests_live": 0, "requests_waiting": 0}) == "0 running"


# ---- refusals and tenants


def test_refusals_are_shown_by_their_reasons():
    figures = {
        'requests_refused_total{reason="tenant"}': 3,
        'requests_refused_total{reason="draining"}': 1,
        'requests_refused_total{reason="a later one"}': 2,
    }
    shown = list(lines([view(page({}), page(figures))]))
    [row] = [line for line in shown if line.startswith("  refused")]
    assert row == (
        "  refused       6  a later one 2  draining 1  max_pending_per_tenant 3  6.0 per second"
    )


def test_a_batcher_that_refuses_requests_as_it_is_closed_or_drains_has_a_row_that_says_so():
    def refused(**reasons):
        return page({f'requests_refused_total{{reason="{it}"}}': reasons[it] for it in reasons})

    def state(before, after):
        shown = lines([view(before, after)])
        return [line.split(maxsplit=1)[1] for line in shown if line.startswith("  state")]

    drained = refused(pending=3, draining=2, closed=0)
    assert state(refused(pending=0, draining=0, closed=0), drained) == [
        "draining: new requests are refused"
    ]
    closed = refused(pending=3, draining=3, closed=1)
    assert state(drained, closed) == ["closed: new requests are refused"]
    assert state(closed, closed) == []  # by a batcher of this name before, perhaps


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ({"accepting": 2}, []),
        ({"draining": 1}, ["draining: new requests are refused"]),
        ({"closed": 1}, ["closed: new requests are refused"]),
        ({"accepting": 3, "draining": 1}, ["1 of 4 draining: new requests are refused"]),
        ({}, ["draining: new requests are refused"]),  # by what was refused
    ],
)
def test_the_state_is_the_one_that_the_page_says(counts, shown):
    states = {
        f'state{{state="{state}"}}': counts.get(state, 0)
        for state in ("accepting", "draining", "closed")
    }
    refused = {'requests_refused_total{reason="draining"}': 0}
    pages = [page(states | dict.fromkeys(refused, count)) for count in (0, 3)]
    rows = lines([view(*pages)])
    assert [row.split(maxsplit=1)[1] for row in rows if row.startswith("  state")] == shown


def test_the_outputs_of_tenants_are_shown_as_their_shares_are_of_them():
    recorded = Recorded("chat")
    [chat] = recorded.batchers

    def end(tenant, outputs, times):
        for _ in range(times):
            chat.submitted(tenant=tenant)
            end = StreamEnd(FinishReason.EOS, outputs)
            chat.finished(end, joined=True, lasted=2.0, in_slot=1.5, tenant=tenant)

    end("long", 1, 1)
    end("short", 1, 1)
    before = recorded.page()
    end("long", 500, 2)
    end("short", 5, 20)
    found = view(before, recorded.page(), seconds=2.0)
    assert [(it.name, it.per_second, it.outputs) for it in found.tenants] == [
        ("long", 1.0, 500.0),
        ("short", 10.0, 50.0),
    ]
    assert "10.0 requests/s  50.0 outputs/s" in "\n".join(lines([found]))


def test_tenants_are_shown_where_the_figures_tell_them_apart():
    def tenants(submitted):
        return page(
            {
                'requests_submitted_total{tenant="acme"}': submitted,
                'requests_waiting{tenant="acme"}': 4,
                'requests_live{tenant="acme"}': 6,
                'requests_waiting{tenant="other"}': 0,
                'requests_refused_total{tenant="acme"}': 9,
            }
        )

    shown = list(lines([view(tenants(10), tenants(30), seconds=2.0)]))
    assert shown[-2:] == [
        "  tenant acme   2 running  4 waiting  10.0 requests/s  9 refused",
        "  tenant other  0 waiting",
    ]


def test_requests_of_no_tenant_have_no_row_where_there_were_none():
    recorded = Recorded("chat")  # whose metrics have the figures of no tenant from the start
    recorded.batchers[0].submitted(tenant="acme")
    [chat] = views(history(recorded.page()))
    assert [tenant.name for tenant in chat.tenants] == ["acme"]


def test_the_picture_says_the_same_as_the_lines():
    found = views(history(page({"requests_running": 3, "slots": 4, "requests_waiting": 2})))
    text = drawn(found, "no server answers")
    words = set(re.findall(r"\w+", "\n".join(lines(found))))
    assert words <= set(re.findall(r"\w+", text))
    assert "■■■□" in text
    assert ADDRESS in text
    assert "no server answers" in text
    assert "q ends it" in text


def drawn(found, notice="", width=100, height=None):
    """Return what a terminal shows that is so wide and high."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(Picture(found, ADDRESS, notice, height))
    return console.export_text()


def with_tenants(**batchers):
    """Return the views of batchers that have so many tenants."""
    recorded = Recorded(*batchers)
    for recorder, count in zip(recorded.batchers, batchers.values(), strict=True):
        work(recorder, "t00" if count else None)
        for number in range(count):
            recorder.submitted(tenant=f"t{number:02}")
    return views(history(recorded.page()))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (50, 28), (200, 24)])
def test_a_low_terminal_leaves_tenants_out_and_says_how_many(width, height):
    text = drawn(with_tenants(chat=12), width=width, height=height)
    shown = text.splitlines()
    assert len(shown) <= height
    assert shown[-1].startswith("╰")
    tenants = re.findall(r"tenant t(\d\d)", text)
    assert tenants == [f"{number:02}" for number in range(len(tenants))]
    left_out = int(re.search(r"and (\d+) more tenants, for which", text)[1])
    assert len(tenants) + left_out == 12
    # Not more is left out than has to be: a row takes up to two lines.
    assert len(shown) >= height - 2


def test_a_low_terminal_shows_every_batcher_that_it_has_room_for():
    text = drawn(with_tenants(chat=20, draft=20), "old", height=24)
    assert len(text.splitlines()) <= 24
    assert re.findall(r"╭─ (\w+) ─", text) == ["chat", "draft"]
    assert re.findall(r"and \d+ more (\w+), for which this terminal is too low", text) == [
        "rows",
        "rows",
    ]
    text = drawn(with_tenants(a=0, b=0, c=0, d=1), height=13)
    assert len(text.splitlines()) <= 13
    assert re.findall(r"╭─ (\w+) ─", text) == ["a", "b"]
    assert text.splitlines()[-1] == "and 2 more batchers, for which this terminal is too low"


def test_a_very_low_terminal_shows_what_is_said_where_there_is_no_batcher():
    assert "no answer" in drawn([], "no answer", height=1)


def test_a_terminal_that_is_high_enough_shows_everything():
    found = with_tenants(chat=3, draft=2)
    whole = drawn(found)
    assert "too low" not in whole
    assert drawn(found, height=len(whole.splitlines())).splitlines() == whole.splitlines()


# ---- what is no page of a batcher

PAGES = {
    "HTML": ("<!doctype html><html><body>Hello</body></html>", "no page of metrics"),
    "JSON": ('{"detail": "hello"}', "no page of metrics"),
    "cut off": ('# TYPE a counter\na_total{x="1', "cannot be read to its end|can be read to"),
    "empty": ("", "no figures of a batcher, among 0 of others.*metrics=PrometheusMetrics"),
    "of others": ("http_requests_waiting 3\nup 1\n", "no figures of a batcher, among 2 of others"),
}


@pytest.mark.parametrize(("text", "message"), PAGES.values(), ids=PAGES)
def test_a_page_that_shows_no_batcher_is_refused_and_the_error_says_what_to_do(text, message):
    with pytest.raises(CommandError, match=message) as raised:
        read_page(text, 0.0, ADDRESS)
    assert ADDRESS in str(raised.value)


ADDRESSES = {
    "127.0.0.1:8000": "http://127.0.0.1:8000/metrics",
    "localhost": "http://localhost/metrics",
    "http://localhost:8000/": "http://localhost:8000/metrics",
    "https://example.org/figures": "https://example.org/figures",
    "http://localhost:8000/metrics/": "http://localhost:8000/metrics/",
    "http://localhost/metrics?name=a#part": "http://localhost/metrics?name=a",
    "http://[::1]:8000": "http://[::1]:8000/metrics",
}


@pytest.mark.parametrize(("url", "address"), ADDRESSES.items())
def test_a_server_is_asked_for_its_page_of_metrics(url, address):
    assert page_address(url) == address


@pytest.mark.parametrize(
    "url", ["ftp://example.org", "file:///etc/hosts", "http://", "localhost:port", "http://[::1"]
)
def test_an_address_that_no_page_can_have_is_refused(url):
    with pytest.raises(CommandError, match=re.escape(repr(url))):
        page_address(url)
