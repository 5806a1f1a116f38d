"""Runs a module as `python -m` does, but where no other machine notices: `apart.py MODULE ARGS...`.

For servers that bind all addresses of a machine, or report how they are used.
"""

import os
import runpy
import sys
from pathlib import Path

import uvicorn


def keep_to_this_machine():
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.environ["BENTOML_HOME"] = str(Path.cwd() / "home")
    make = uvicorn.Config.__init__

    def make_here(config, app, host="127.0.0.1", *args, **options):
        make(config, app, "127.0.0.1" if host == "0.0.0.0" else host, *args, **options)  # noqa: S104

    uvicorn.Config.__init__ = make_here


if __name__ == "__main__":
    keep_to_this_machine()
    del sys.argv[0]
    sys.path[0] = str(Path.cwd())
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
