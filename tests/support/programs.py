"""Programs of their own, run by this Python to their end in development mode."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from support.sources import TIMEOUT

# In development mode asyncio warns of a callback that took long, which on a busy machine any may.
PREAMBLE = """
import logging
logging.getLogger("asyncio").addFilter(lambda record: not record.msg.startswith("Executing %s"))
"""


def run_program(*parts, flags=(), environment=None):
    """Run the parts of a program, one after the other.

    Args:
        parts: Code; each part may be indented as a whole.
        flags: Of the interpreter, besides development mode.
        environment: Its environment variables; by default the same as in this process.

    Returns:
        What it ended with and printed: `(0, "", "")` if it went well and said nothing.
    """
    program = "".join(map(textwrap.dedent, (PREAMBLE, *parts)))
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-X", "dev", *flags, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr
