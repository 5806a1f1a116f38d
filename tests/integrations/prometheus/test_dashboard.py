"""The dashboard and the alerts: their queries against the registry, and in a real Prometheus.

What needs Prometheus itself is skipped where its two programs, `prometheus` and `promtool`, are not
on the path (Debian has them in the package `prometheus`).
"""

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from batchstream.integrations.prometheus import PrometheusMetrics
from batchstream.integrations.prometheus._figures import OWN, exposed
from support.scripted import Run

HERE = Path(__file__).parent
DASHBOARDS = HERE.parent.parent.parent / "dashboards"
DASHBOARD = json.loads((DASHBOARDS / "batchstream.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
QUERIES = [target["expr"] for panel in PANELS.values() for target in panel["targets"]]
VARIABLES = [
    it["query"]["query"] for it in DASHBOARD["templating"]["list"] if it["type"] == "query"
]
ALERTS = (DASHBOARDS / "alerts.yml").read_text()

SELECTOR = re.compile(r"\b(batchstream_\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r'(\w+)\s*=~?\s*"')
TARGET = {"instance"}
"""Labels that Prometheus adds, by where it reads."""
GROUPED_BY = re.compile(r"\bby \(([\w, ]*)\)")
SUFFIX = re.compile(r"_(bucket|sum|count)$")

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not on the path",
)
TIMEOUT = 60


@pytest.fixture(scope="module")
def registry():
    """Return what the registry has after a run of which every figure is known."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        registry = CollectorRegistry()
        metrics = PrometheusMetrics(registry=registry, tenants=2, cache_usage=lambda: 0.5)
        Run(monkeypatch, metrics)
    return registry


def samples_of(registry):
    """Return the labels of each sample that a query can name, over all its series."""
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_what_queries_name_is_in_the_registry(registry):
    samples = samples_of(registry)
    for query in [
        *QUERIES,
        *VARIABLES,
        *re.findall(r"^\s+expr: >-\n((?: {10}.*\n)+)", ALERTS, re.MULTILINE),
    ]:
        selectors = SELECTOR.findall(query)
        assert selectors, query
        for name, filters in selectors:
            assert name in samples, query
            assert set(LABEL.findall(filters)) <= samples[name] | TARGET, query
        grouped = {
            label.strip() for group in GROUPED_BY.findall(query) for label in group.split(",")
        }
        assert all(grouped <= samples[name] for name, _ in selectors), query
        named = re.search(r"label_values\(.*, (\w+)\)", query)
        assert named is None or named[1] in samples[selectors[0][0]] | TARGET


def test_every_panel_shows_the_batchers_and_instances_that_are_chosen():
    for query in QUERIES:
        for _, filters in SELECTOR.findall(query):
            assert 'batcher=~"$batcher"' in filters, query
            assert 'instance=~"$instance"' in filters, query


def test_there_are_as_many_alerts_as_expressions():
    assert (
        ALERTS.count("- alert:") == len(re.findall(r"^\s+expr: >-\n", ALERTS, re.MULTILINE)) == 10
    )


def test_what_an_alert_compares_a_quantile_with_is_a_bound_of_a_bucket():
    bounds = {exposed(figure, "batchstream"): figure.buckets for figure in OWN}
    compared = re.findall(r"histogram_quantile\(.*?(batchstream_\w+)_bucket.*> ([\d.]+)\n", ALERTS)
    assert len(compared) == ALERTS.count("histogram_quantile(") == 3
    for name, limit in compared:
        assert float(limit) in bounds[name]


def test_a_panel_shows_each_figure():
    shown = {SUFFIX.sub("", name) for query in QUERIES for name, _ in SELECTOR.findall(query)}
    assert shown == {exposed(figure, "batchstream") for figure in OWN}


def test_panels_have_titles_and_descriptions_and_lie_side_by_side():
    assert len(PANELS) == len(DASHBOARD["panels"])
    assert all(panel["description"].endswith(".") for panel in PANELS.values())
    covered = set()
    for panel in PANELS.values():
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not covered & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        covered |= cells


# ---- in a real Prometheus


@needs_prometheus
def test_every_alert_fires_where_it_should_and_none_in_normal_work():
    command = ["promtool", "test", "rules", str(HERE / "alerts_test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr


def written(registry, before, after):
    """Return the samples as OpenMetrics, at the first times before anything was counted."""
    lines = []
    for family in registry.collect():
        lines.append(f"# TYPE {family.name} {family.type}")
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            labels = ",".join(f'{label}="{value}"' for label, value in sample.labels.items())
            for at in (*before, *after):
                value = sample.value if at in after or family.type == "gauge" else 0.0
                lines.append(f"{sample.name}{{{labels}}} {value} {at}")
    return "\n".join([*lines, "# EOF", ""])


class Prometheus:
    """A server of Prometheus with these samples and no targets."""

    def __init__(self, folder, text):
        (folder / "samples").write_text(text)
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics"]
        subprocess.run(  # noqa: S603
            [*command, str(folder / "samples"), str(folder / "data")],
            check=True,
            capture_output=True,
            timeout=TIMEOUT,
        )
        (folder / "config.yml").write_text("{}\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(  # noqa: S603
            [
                shutil.which("prometheus"),
                f"--config.file={folder / 'config.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        begin = time.monotonic()
        while not self._is_ready():
            assert self._process.poll() is None, self._said()
            assert time.monotonic() < begin + TIMEOUT, self._said()
            time.sleep(0.05)  # polls its readiness

    def _said(self):
        self._log.seek(0)
        return self._log.read()

    def _is_ready(self):
        try:
            return urllib.request.urlopen(f"{self._url}/-/ready", timeout=TIMEOUT).status == 200  # noqa: S310
        except urllib.error.URLError:
            return False

    def query(self, expression, at):
        """Return the values by labels."""
        arguments = urllib.parse.urlencode({"query": expression, "time": at})
        url = f"{self._url}/api/v1/query?{arguments}"
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:  # noqa: S310
            result = json.load(reply)
        assert result["status"] == "success", result
        return {
            tuple(sorted(each["metric"].items())): float(each["value"][1])
            for each in result["data"]["result"]
        }

    def close(self):
        self._process.terminate()
        self._process.wait(TIMEOUT)
        self._log.close()


def filled_in(query):
    """Return a query as Grafana sends it, for all batchers and tenants."""
    for variable in ("$batcher", "$instance", "$tenant"):
        query = query.replace(variable, ".*")
    return query.replace("$__rate_interval", "5m")


@needs_prometheus
def test_a_real_prometheus_evaluates_every_query_of_the_dashboard(registry, tmp_path):
    # In whole minutes some hours ago: Prometheus keeps what is not too old.
    end = int(time.time()) // 60 * 60 - 4 * 3600
    before, after = range(end - 600, end - 180, 60), range(end - 180, end + 1, 60)
    prometheus = Prometheus(tmp_path, written(registry, before, after))
    try:
        shown = {
            title: [prometheus.query(filled_in(target["expr"]), end) for target in panel["targets"]]
            for title, panel in PANELS.items()
        }
        for query in QUERIES:  # there as it is with a refresh, and with a name that no batcher has
            assert (
                prometheus.query(filled_in(query).replace('batcher=~".*"', 'batcher="none"'), end)
                == {}
            )
    finally:
        prometheus.close()
    assert all(all(results) for results in shown.values())
    values = {
        title: [sorted(result.values()) for result in results] for title, results in shown.items()
    }
    not_finite = {
        (title, labels)
        for title, results in shown.items()
        for result in results
        for labels, value in result.items()
        if not math.isfinite(value)
    }
    # Every request here had a tenant.
    assert not_finite == {("Time in the queue, by tenant", ())}
    assert values["Running"] == values["Waiting"] == [[0]]
    assert values["Occupancy"] == [[pytest.approx(10 / 12)]]
    assert values["Slots of a step"] == [
        [pytest.approx(10 / 6)],
        [pytest.approx(1 / 6)],
        [pytest.approx(2 / 6)],
    ]
    assert values["Requests that join together"] == [[pytest.approx(6 / 5)]]
    assert values["Cache in use"] == [[0.5]]
    assert values["Requests by state"] == [[0], [0], [2]]
    # One of three gaps lies between 0.2 and 0.3 seconds, and two between 0.3 and 0.5.
    median, high, _ = values["Time between outputs"]
    assert median == [pytest.approx(0.3 + 0.2 * (1.5 - 1) / 2)]
    assert high == [pytest.approx(0.3 + 0.2 * (2.85 - 1) / 2)]
    # Of four requests one had it within 1 second, one more within 2.5, and the others within 5.
    assert values["Time to first output"][0] == [pytest.approx(2.5)]
    outputs = shown["Outputs per second, by tenant"][0]
    assert {labels[0][1]: value for labels, value in outputs.items() if labels} == {
        tenant: pytest.approx(given / 300) for tenant, given in {"x": 3, "y": 2, "other": 1}.items()
    }
    by_tenant = shown["Time in the queue, by tenant"][0]
    assert {dict(labels).get("tenant") for labels in by_tenant} == {"x", "y", "other", None}
    accepted, refused = shown["Requests that come"]
    assert accepted == {(): pytest.approx(7 / 300)}
    assert {labels[0][1]: value for labels, value in refused.items() if value} == {
        reason: pytest.approx(1 / 300) for reason in ("pending", "cost", "closed")
    }
