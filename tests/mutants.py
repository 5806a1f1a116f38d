"""Breaks the package on purpose, one way at a time, and names the test that notices.

    python tests/mutants.py [name …]

Each mutant is one wrong line that somebody might well write. It is applied to a copy of the
package, and the core's tests are run on that copy until one fails. A mutant that survives, or that
no longer applies, is an error: either the tests are blind to it, or it has to be written anew.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = [
    "test_demux.py",
    "test_sync.py",
    "test_errors.py",
    "test_lifecycle.py",
    "test_demux_stateful.py",
    "test_properties.py",
    "test_schedules.py",
]
SECONDS = 400
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--confcutdir=tests"]
PYTEST += ["-p", "no:cacheprovider", "-o", "timeout=30"]


@dataclass(frozen=True)
class Mutant:
    """One wrong line: `right`, which occurs once in the module, becomes `wrong`."""

    name: str
    module: str
    right: str
    wrong: str


UNBROKEN = Mutant("nothing is broken", "_demux.py", "class _Draft(", "class _Draft(")

MUTANTS = [
    Mutant(
        "the end mark is found by equality",
        "_demux.py",
        "elif element is self._eos or element is EOS:",
        "elif element == self._eos or element == EOS:",
    ),
    Mutant(
        "a step is plain if its sum of types is not looked at",
        "_demux.py",
        "if not self._marks.absent_from(values):",
        "if None in values:",
    ),
    Mutant(
        "a short step is truncated, as zip does",
        "_steps.py",
        "    if len(elements) != size:",
        "    if len(elements) > size:",
    ),
    Mutant(
        "an unknown slot is ignored",
        "_steps.py",
        "if slot is None or not 0 <= slot < size:",
        "if slot is None:",
    ),
    Mutant(
        "Last ends its slot without its output",
        "_demux.py",
        "            self._give(draft, slot, element.output)\n",
        "",
    ),
    Mutant(
        "the output that is_eos recognised is always delivered",
        "_demux.py",
        "                if self._include_eos:\n",
        "                if True:\n",
    ),
    Mutant(
        "a limit lets one output too many through",
        "_demux.py",
        "self.given(slot) >= self._limits[slot]",
        "self.given(slot) > self._limits[slot]",
    ),
    Mutant(
        "plain steps forget the limit",
        "_demux.py",
        'if self._state != "running" or self._plain_steps >= self._plain_limit:',
        'if self._state != "running":',
    ),
    Mutant(
        "outputs after an end in Many are delivered",
        "_demux.py",
        'if self._slots[slot] != "live":',
        "if False:",
    ),
    Mutant(
        "what finished slots are given is not counted",
        "_marks.py",
        "            return len(elements)\n",
        "            return 0\n",
    ),
    Mutant(
        "an opened slot goes on counting from before",
        "_demux.py",
        "        self._extra[slot] = -self._plain_steps\n",
        "",
    ),
    Mutant(
        "a predicate that raises fails everybody",
        "_demux.py",
        "            except Exception as error:  # noqa: BLE001 - the predicate is the caller's\n",
        "            except ZeroDivisionError if False else () as error:\n",
    ),
    Mutant(
        "live is a new tuple every time",
        "_demux.py",
        "        self._live = live\n        return live\n",
        "        return live\n",
    ),
    Mutant(
        "an early end of the source passes for eos",
        "_demux.py",
        "self._finish(draft, slot, FinishReason.EXHAUSTED)",
        "self._finish(draft, slot, FinishReason.EOS)",
    ),
    Mutant(
        "failing does not latch",
        "_demux.py",
        '("running", "fail"): "failed",',
        '("running", "fail"): "running",',
    ),
    Mutant(
        "the source runs on when nobody is live",
        "_pull.py",
        "            self._source.close_quietly()\n",
        "            pass\n",
    ),
    Mutant(
        "the source is pulled for a stream that was served meanwhile",
        "_pull.py",
        "if self.moves == moves and not buffer.ends:",
        "if not buffer.ends:",
    ),
    Mutant(
        "the bound is looked at after the pull",
        "_pull.py",
        "                        if self._max_buffered is not None:\n"
        "                            self._check_room(self._max_buffered)\n"
        "                        self._move()\n",
        "                        self._move()\n"
        "                        if self._max_buffered is not None:\n"
        "                            self._check_room(self._max_buffered)\n",
    ),
    Mutant(
        "a cancel noted during a step is forgotten",
        "_pull.py",
        "                self._settle()\n\n    def pull_by_time",
        "                pass\n\n    def pull_by_time",
    ),
    Mutant(
        "the source's own thread waits for itself",
        "_pull.py",
        "    def _refusal(self) -> Exception:\n        if self._forked:\n",
        "    def _refusal(self) -> Exception:\n        if True:\n",
    ),
    Mutant(
        "an interrupt is swallowed",
        "_pull.py",
        "        if isinstance(error, PASSING):\n",
        "        if False:\n",
    ),
    Mutant(
        "an interrupt leaves the other streams waiting",
        "_pull.py",
        "                buffer.finish(StreamEnd(FinishReason.ERROR, given, error=error))\n",
        "                pass\n",
    ),
    Mutant(
        "the source runs in the consumer's context",
        "_source.py",
        "        self._context = copy_context()\n",
        "        self._context = type('Here', (), {'run': staticmethod(lambda f, *a: f(*a))})()\n",
    ),
    Mutant(
        "the source is closed again and again",
        "_source.py",
        "        iterator, self._iterator = self._iterator, iter(())\n",
        "        iterator = self._iterator\n",
    ),
    Mutant(
        "a generator is never told who is live",
        "_source.py",
        "            self.advance = partial(self._context.run, send)\n",
        "            self.advance = self._advance_deaf\n",
    ),
    Mutant(
        "all consumers are raised the same exception",
        "_errors.py",
        "    own = _copy(error) if isinstance(error, Exception) else None\n",
        "    return error\n    own = None\n",
    ),
    Mutant(
        "StopIteration out of user code ends a stream silently",
        "_errors.py",
        "isinstance(own, StopIteration | StopAsyncIteration)",
        "False",
    ),
    Mutant(
        "a copied error is made by its own __init__",
        "_errors.py",
        "        own = cls.__new__(cls, *error.args)\n",
        "        own = cls(*error.args)\n",
    ),
    Mutant(
        "the consumer's own context goes to everybody",
        "_pull.py",
        "        forget_context(error, sys.exception())\n",
        "",
    ),
    Mutant(
        "the end is looked at after the outputs",
        "_buffers.py",
        "                if ended and (buffer.cancelled or not unread):\n",
        "                if buffer.ends and (buffer.cancelled or not unread):\n",
    ),
    Mutant(
        "a cancelled stream may still be read by the reader it has",
        "_buffers.py",
        "        self.cancelled = True\n        self.stop_reader()\n",
        "        self.cancelled = True\n",
    ),
    Mutant(
        "a reader made during a cancel is missed",
        "_buffers.py",
        "        if self.cancelled:  # by another thread, which may have missed this reader\n",
        "        if False:\n",
    ),
    Mutant(
        "a second consumer is let in",
        "_buffers.py",
        '        if buffer.consumer.setdefault("thread", me) != me:\n'
        "            raise self._concurrent()\n"
        "        try:\n            pulled = False\n",
        "        try:\n            pulled = False\n",
    ),
    Mutant(
        "an output is lost to a signal between its count and its return",
        "_buffers.py",
        "                    for _ in gate:\n                        return output\n",
        "                    next(gate)\n                    return output\n",
    ),
    Mutant(
        "what is left of a finished stream is kept as long as the stream",
        "_buffers.py",
        "        self._buffer.discard()\n",
        "",
    ),
    Mutant(
        "a dropped stream waits for the cycle collector",
        "_sync.py",
        "            self._inlet.abandon()\n",
        "",
    ),
    Mutant(
        "the source cannot close its own batch",
        "_pull.py",
        "if not (self._forked or self._holder == get_ident()):",
        "if not self._forked:",
    ),
    Mutant(
        "token ids hash whatever they are given",
        "_eos.py",
        "return set(map(type, outputs)) == {int} and self._ids.isdisjoint(outputs)",
        "return self._ids.isdisjoint(outputs)",
    ),
    Mutant(
        "an error comes before what is buffered",
        "_buffers.py",
        "                if ended and (buffer.cancelled or not unread):\n",
        "                if ended and (buffer.cancelled or buffer.ends[0].error or not unread):\n",
    ),
    Mutant(
        "an error is raised for ever",
        "_buffers.py",
        "            self._error_raised = True\n",
        "",
    ),
    Mutant(
        "received outputs are kept for ever",
        "_buffers.py",
        "        if self.tail:\n            self._begin_segment()\n",
        "        pass\n",
    ),
    Mutant(
        "dropping a stream does not cancel it",
        "_sync.py",
        "            self.cancel()\n            self._inlet.abandon()\n",
        "            pass\n",
    ),
    Mutant(
        "a forked child uses the parent's source",
        "_pull.py",
        "        self._forked = True\n",
        "        self._forked = False\n",
    ),
]


def run(mutant: Mutant) -> str:
    """Return the test that noticed, or what went wrong in capitals."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "batchstream", copy / "batchstream")
        shutil.copytree(ROOT / "tests", copy / "tests")
        shutil.copy(ROOT / "pyproject.toml", copy)
        module = copy / "batchstream" / mutant.module
        text = module.read_text()
        if text.count(mutant.right) != 1:
            return f"DOES NOT APPLY: found {text.count(mutant.right)} times"
        module.write_text(text.replace(mutant.right, mutant.wrong))
        try:
            completed = subprocess.run(  # noqa: S603 - our own tests
                [*PYTEST, *(f"tests/{name}" for name in TESTS)],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": folder, "PY_COLORS": "0"},
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"UNCLEAR: not done after {SECONDS} seconds"
    noticed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", completed.stdout, re.MULTILINE)
    if noticed:
        return noticed[1]
    if "Timeout" in completed.stdout + completed.stderr:
        hung = re.search(r"in (test_\w+)", completed.stdout + completed.stderr)
        return f"{hung[1] if hung else 'a test'} (hung)"
    return "SURVIVED" if completed.returncode == 0 else f"UNCLEAR: {completed.stdout[-300:]}"


def main(names: list[str]) -> int:
    """Run the mutants, those named or all, and print what noticed each."""
    chosen = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    if (result := run(UNBROKEN)) != "SURVIVED":
        print(f"the tests fail as it is: {result}")
        return 1
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = list(pool.map(run, chosen))
    for mutant, result in zip(chosen, results, strict=True):
        print(f"{mutant.name}\n    {result}")
    missed = [result for result in results if result.split()[0].isupper()]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
