"""Lets one allocation after the other fail in a piece of work, and says what came of it.

Run as a program, it takes a kind of work, the first allocation to fail, the step to the next, and
how many in a row fail each time: several numbers for several sweeps. It prints a line for each
outcome that is wrong.

    python -m support.native_allocations Marked 0 1 1 3
"""

from __future__ import annotations

import _testcapi
import faulthandler
import gc
import os
import sys
import warnings

from support.native_work import WORKS

SECONDS = float(os.environ.get("NATIVE_SECONDS", "60"))
"""Fifty failures take less, unless one leaves something that waits for ever."""

UNDISTURBED = 60
"""After so many allocations in a row without a trace of a failure, none was left to fail."""


class Sweep:
    """Failures in one kind of work.

    Args:
        kind: Which.
        width: How many allocations in a row fail.
    """

    def __init__(self, kind, width):
        self.kind = kind
        self.width = width
        self.reported = [None]
        sys.unraisablehook = self.report
        work = kind()
        work.act()
        work.finish()
        self.expected = work.outputs(), work.reasons(), list(map(type, work.ends))
        work.close()

    def report(self, about):
        self.reported[0] = about.exc_value

    def disturb(self, number):
        """Let an allocation fail; return whether that left a trace, and what is wrong with it."""
        self.reported[0] = raised = None
        work = self.kind()
        _testcapi.set_nomemory(number, number + self.width)
        try:
            work.act()
        except BaseException as error:  # noqa: BLE001 - what came of it
            _testcapi.remove_mem_hooks()
            raised = error.with_traceback(None)
        _testcapi.remove_mem_hooks()
        work.finish()
        told = [raised, self.reported[0], *work.told()]
        traced = any(map(is_of_memory, told))
        wrong = self.fault(work, raised, traced=traced)
        work.close()
        return traced, wrong

    def fault(self, work, raised, *, traced):
        """Say what is wrong with an outcome, if anything is.

        A stream gives what it should; or it gives a part, and an error has told so. Where several
        allocations fail in a row, so may the failing of the batch, and the next receive goes on.
        """
        broken = [error for error in (raised, *work.told()) if is_broken(error)]
        if broken or self.width > 1:
            return str(broken) if broken else None
        outputs, reasons, ends = self.expected
        errors = [error for error in (raised, *work.told()) if error is not None]
        traced = traced or any(type(error) not in ends for error in errors)
        for number, found in enumerate(work.outputs()):
            if not is_part(found, outputs[number]):
                return f"{found} is no part of {outputs[number]}, {errors}"
            if not traced and found != outputs[number]:
                return f"{found} in place of {outputs[number]}, {errors}"
        if not traced and (work.reasons(), list(map(type, work.ends))) != (reasons, ends):
            return f"{work.reasons()} in place of {reasons}, {work.ends}, {errors}"
        return None


def is_broken(error):
    """Whether a function in C has returned nothing and no error, or a result and an error."""
    return isinstance(error, SystemError) and not is_of_memory(error)


def is_of_memory(error):
    """Whether an error is one of memory, or was caused by one."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, MemoryError):
            return True
        # What CPython itself says where a frame of a function in Python cannot be made.
        if isinstance(error, SystemError) and str(error).startswith(("<function", "error return")):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def is_part(found, expected):
    """Whether this is a beginning of what was expected, less that of a receive that has failed."""
    if found == expected[: len(found)]:
        return True
    gaps = range(len(expected))
    return any(found == (expected[:gap] + expected[gap + 1 :])[: len(found)] for gap in gaps)


def main(name, start, stride, *widths):
    faulthandler.enable()
    gc.disable()
    warnings.simplefilter("ignore")  # of coroutines that could not begin
    for width in widths:
        sweep_all(Sweep(WORKS[name], width), start, stride)


def sweep_all(sweep, start, stride):
    number, quiet, disturbed = start, 0, 0
    while quiet * stride < UNDISTURBED or quiet < 5:
        print(f"\r{number}", end="", flush=True)
        traced, wrong = sweep.disturb(number)
        if wrong is not None:
            print(f"\nallocation {number}: {wrong}", flush=True)
        disturbed += traced
        quiet = 0 if traced else quiet + 1
        number += stride
        if number % 50 < stride:
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            gc.collect()
    print(f"\n{disturbed} failures by {sweep.width} among {number} allocations", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
