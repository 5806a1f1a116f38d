r"""Flood a server with the requests of several tenants, and say what each of them got.

    python examples/custom_server.py

    python examples/flood.py gold silver bronze --port 8000

Every tenant has the same number of clients. Each of them asks again as soon as it has its reply;
one that is refused waits for as long as `Retry-After` says. After so many outputs all hang up. When
the server stops, each reads its last reply to the end.
"""

import argparse
import contextlib
import http.client
import json
import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

SECONDS = 60  # for one answer of the server
GENERATION = {"prompt": "The mill", "temperature": 0.1, "max_outputs": 50}


@dataclass
class Flood:
    """What all clients have got, by tenant."""

    port: int
    enough: int
    outputs: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    waits: list[int] = field(default_factory=list)  # seconds, as refusals said
    ends: threading.Event = field(default_factory=threading.Event)  # no client asks any more
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, tenants: list[str], clients: int) -> None:
        """Let the clients of all tenants ask, until they have enough or the server is gone."""
        threads = [
            threading.Thread(target=self.be_client, args=(tenant, number))
            for number in range(clients)
            for tenant in tenants
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self.enough = 0
            self.ends.set()

    def be_client(self, tenant: str, number: int) -> None:
        """Ask again and again, until the flood ends."""
        while not self.ends.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
            with contextlib.closing(connection):
                try:
                    response = self.ask(connection, tenant, number)
                except (http.client.HTTPException, OSError):  # the server takes no more requests
                    self.ends.set()
                    return
                try:
                    self.read(response, tenant)
                except (http.client.HTTPException, OSError):
                    self.count(self.cut, tenant)

    def ask(
        self, connection: http.client.HTTPConnection, tenant: str, number: int
    ) -> http.client.HTTPResponse:
        """Send a request, and wait for the status."""
        body = json.dumps({**GENERATION, "seed": number})
        headers = {"Content-Type": "application/json", "X-Tenant": tenant}
        connection.request("POST", "/generate", body, headers)
        return connection.getresponse()

    def read(self, response: http.client.HTTPResponse, tenant: str) -> None:
        """Read a reply; or wait for as long as a refusal says."""
        if response.status == http.client.SERVICE_UNAVAILABLE:
            self.count(self.refused, tenant)
            seconds = int(response.headers["Retry-After"])
            self.waits.append(seconds)
            self.ends.wait(seconds)
        elif response.status == http.client.GATEWAY_TIMEOUT:
            self.count(self.late, tenant)
        else:
            for line in response:
                if self.has_enough():
                    return  # and hang up
                self.count(self.replies if b"finish_reason" in line else self.outputs, tenant)

    def count(self, what: Counter[str], tenant: str) -> None:
        """Add one, and end the flood if there are enough outputs."""
        with self.lock:
            what[tenant] += 1
        if self.has_enough():
            self.ends.set()

    def has_enough(self) -> bool:
        """Return whether clients may hang up."""
        with self.lock:
            return self.outputs.total() >= self.enough

    def rows(self, tenants: list[str]) -> Iterator[str]:
        """Say what each tenant got."""
        total = self.outputs.total() or 1
        yield (
            f"{'tenant':12}{'replies':>9}{'outputs':>9}{'part':>7}{'refused':>9}"
            f"{'late':>6}{'cut':>5}"
        )
        for tenant in tenants:
            part = self.outputs[tenant] / total
            yield (
                f"{tenant:12}{self.replies[tenant]:9}{self.outputs[tenant]:9}{part:7.0%}"
                f"{self.refused[tenant]:9}{self.late[tenant]:6}{self.cut[tenant]:5}"
            )
        if self.waits:
            half = statistics.median_low(self.waits)
            yield f"Retry-After was {half} s in the median, and {max(self.waits)} s at most"


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("tenants", nargs="*", default=["gold", "silver", "bronze"])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--clients", type=int, default=16, help="of each tenant")
    parser.add_argument("--outputs", type=int, default=10_000, help="of all, and then it is over")
    args = parser.parse_args()
    print(f"starting a flood of {args.clients} clients for each of {args.tenants}", flush=True)
    flood = Flood(args.port, args.outputs)
    flood.run(args.tenants, args.clients)
    print("\n".join(flood.rows(args.tenants)))
