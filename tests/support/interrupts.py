"""Interrupts at a given line of the package, as the exception of a signal's handler strikes."""

from __future__ import annotations

import gc
import linecache
import re
import sys

import pytest

from support import knobs

needs_lines = pytest.mark.skipif(
    knobs.NATIVE, reason="the native core has no lines of Python before which to strike"
)

_TAKES_A_LOCK = re.compile(r"with (?:\w+\.)+_?lock:")


def interrupt():
    raise KeyboardInterrupt


def can_strike(text, before):
    """Whether a signal's exception can strike before a line, given what stands above it.

    It strikes between instructions that a trace function does not distinguish: neither as a lock is
    taken or given back, nor at a line without a call. One at the `pass` of a handler would leave
    the handled exception behind, in all that the thread does later; and one before a line without
    a call that begins a `finally` would come from within the `try`, and run that line.
    """
    text, before = text.strip(), before.strip()
    if text in {"try:", "pass"} or text.startswith("except"):
        return False
    if _TAKES_A_LOCK.fullmatch(text) or before == "if taken:":
        return False
    return before != "finally:" or "(" in text


def at_line(line, call, deed=interrupt, *, files=None, within=None):
    """Call a function, and do something before the so-manyth line of the package.

    Args:
        line: The number of the line, from 1 on.
        call: The function; an interrupt that it raises is caught.
        deed: What is done, as in a signal's handler.
        files: The files whose lines count; that of `within` if it is None.
        within: The code whose lines count, with all that it calls in these files; any if it is
            None.

    Returns:
        Where that was; None if there are not so many lines.
    """
    where = None
    left = line
    inside = 0
    files = {within.co_filename} if files is None else files

    def trace(frame, event, _):
        nonlocal left, where, inside
        code = frame.f_code
        if code.co_filename not in files:
            return None
        if code is within and event in {"call", "return"}:
            inside += 1 if event == "call" else -1
        if within is not None and not inside:
            return trace
        before, text = (
            linecache.getline(code.co_filename, frame.f_lineno - above) for above in (1, 0)
        )
        if event == "line" and can_strike(text, before):
            left -= 1
            if not left:
                where = f"{code.co_name}:{frame.f_lineno} {text.strip()}"
                sys.settrace(None)
                deed()
        return trace

    tracer = sys.gettrace()
    gc.disable()  # what is collected meanwhile is none of the package's
    sys.settrace(trace)
    try:
        result = call()  # noqa: F841 - a stream's finalizer is not to be interrupted
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracer)
        gc.enable()
    return where
