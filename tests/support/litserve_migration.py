"""Runs a LitServe server of examples/migrations: `python litserve_migration.py NAME PORT`.

Three more prompts have errors: one in mid-stream, and two that `decode_request` raises.
"""

import importlib
import sys
from pathlib import Path

from fastapi import HTTPException

from batchstream import RequestError

PROGRAMS = Path(__file__).parents[2] / "examples" / "migrations"


class Failing(list):
    """Words of which the model can say no more than the first."""

    def __getitem__(self, index):
        if index == 1:
            raise OSError("device lost")
        return super().__getitem__(index)


class Reply:
    """Has what `split` returns for the words of a reply, or raises."""

    def __init__(self, words):
        self.words = words

    def split(self):
        """Return the words, or raise them."""
        if isinstance(self.words, Exception):
            raise self.words
        return self.words


if __name__ in {"__main__", "__mp_main__"}:  # the workers are new processes, which run it anew
    name, port = sys.argv[1:]
    sys.path.append(str(PROGRAMS))
    program = importlib.import_module(name)
    program.REPLIES |= {
        "failing": Reply(Failing(["so", "it", "goes"])),
        "forbidden": Reply(HTTPException(403, "not that")),
        "bad": Reply(RequestError("not so")),
    }

if __name__ == "__main__":
    program.api.batch_timeout = 20  # a batch that is not full waits for the test
    program.server.run(host="127.0.0.1", port=int(port), generate_client_file=False)
