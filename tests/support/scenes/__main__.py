"""Plays scenes, and prints a headline for each and what it saw.

python -m support.scenes "steps that change while is_eos runs"
"""

from __future__ import annotations

import faulthandler
import gc
import sys
import traceback

import support.scenes.between
import support.scenes.outputs
import support.scenes.receives
import support.scenes.sources
import support.scenes.steps  # noqa: F401 - they enter the list
from support.scenes.stage import SCENES, SECONDS, say


def main(names):
    gc.disable()
    sys.unraisablehook = lambda about: say("unraisable", about.exc_value)
    for name in names or SCENES:
        print("====", name, flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            SCENES[name]()
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            traceback.print_exc()
            say("the scene fails", error)
        gc.collect()
    faulthandler.cancel_dump_traceback_later()
    print("==== over", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
