"""The commands and their options. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from typing import TYPE_CHECKING

from batchstream._cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TOP = """\
Show what a running server does at this moment, from its metrics page: its slots as a picture, how
many requests wait, rates, times, refusals. A batcher has such figures if it is made with
metrics=PrometheusMetrics(); the server shows them where prometheus_client's page is.

The rates are over the last ten seconds; so are the times, or else since the start of the server.
Where the output is no terminal, and with --once, the figures are printed once: the rates are then
over one interval.

keys: q ends it
"""

_DEMO = """\
Run one LitServe server twice, with one line changed: with LitServe's own loop, and with the loop
of this library. The same clients ask both at the same time. Their replies have long-tailed lengths,
and a quarter of the clients hang up: the longer a reply, the likelier. The model is a stand-in: a
step takes the same time, for any batch. Its worker writes down each step, and for which clients it
is.

Both servers run on free ports of 127.0.0.1, and are ended whatever happens.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status.

    Args:
        arguments: What stands behind `python -m batchstream`; None for this process's arguments.
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except CommandError as error:
        print(f"batchstream {options.name}: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    except KeyboardInterrupt:
        return 130


def _top(options: argparse.Namespace) -> int:
    from batchstream._cli.top.run import top  # noqa: PLC0415 - needs the extra

    return top(options.url, interval=options.interval, once=options.once)


def _demo(options: argparse.Namespace) -> int:
    from batchstream._cli.demo.run import Settings, demo  # noqa: PLC0415 - the other needs it not

    settings = Settings(
        clients=options.clients, slots=options.slots, seconds=options.step, seed=options.seed
    )
    return demo(settings, plain=options.plain, svg=options.svg)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m batchstream", description="Tools for servers that batch their requests."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str, function: Callable[[argparse.Namespace], int], text: str, short: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=short,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function, name=name)
        return command

    top = add("top", _top, _TOP, "a live view of a running server")
    top.add_argument(
        "url",
        metavar="URL",
        help="the server, or its metrics page: 127.0.0.1:8000 stands for http://127.0.0.1:8000/metrics",
    )
    top.add_argument(
        "--interval",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="between two looks at the page (default: %(default)g)",
    )
    top.add_argument(
        "--once", action="store_true", help="print the figures in plain lines, and end"
    )

    demo = add("demo", _demo, _DEMO, "LitServe's loop and ours, side by side")
    demo.add_argument(
        "--clients", type=_count, default=24, metavar="N", help="how many (default: %(default)s)"
    )
    demo.add_argument(
        "--slots",
        type=_count,
        default=8,
        metavar="N",
        help="how many requests a batch has at most (default: %(default)s)",
    )
    demo.add_argument(
        "--step",
        type=_seconds,
        default=0.06,
        metavar="SECONDS",
        help="how long a step of the model takes (default: %(default)g)",
    )
    demo.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="for the lengths, and for which clients hang up (default: %(default)s)",
    )
    demo.add_argument(
        "--plain", action="store_true", help="print lines, as where the output is no terminal"
    )
    demo.add_argument("--svg", metavar="FILE", help="save the last picture in a file, too")
    return parser


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"a number of seconds above 0 is needed, got {text!r}")


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (count := int(text)) >= 1:
            return count
    raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, got {text!r}")
