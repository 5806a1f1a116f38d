"""Checks of arguments, and their defaults. A check returns the value as the code uses it."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from batchstream._core.end_marks import what_finds
from batchstream._core.markers import EOS, MARKER_TYPES
from batchstream._core.token_ids import token_ids

OnOverflow = Literal["wait", "cancel", "merge"]

DEFAULT_MAX_BUFFERED: Final = 1024
DEFAULT_MAX_PENDING: Final = 1024

UNLIMITED: Final = sys.maxsize


class Bound(NamedTuple):
    """How much a live stream may hold, and what happens to one that holds as much.

    Attributes:
        max_buffered: How many outputs.
        on_overflow: Whether the pump waits for the stream, ends it, or merges what comes.
        merge: Makes one output of two neighbours, for `"merge"`.
        max_buffered_bytes: How many bytes; None for any number.
        size_of: How many bytes an output has; None for text and bytes.
    """

    max_buffered: int
    on_overflow: OnOverflow
    merge: Callable[[Any, Any], Any] | None = None
    max_buffered_bytes: int | None = None
    size_of: Callable[[Any], Any] | None = None

    @classmethod
    def checked(
        cls,
        max_buffered: object,
        on_overflow: object,
        *,
        merge: Any = None,
        max_buffered_bytes: object = None,
        size_of: Any = None,
    ) -> Bound:
        """Return the bound if all arguments are right.

        Raises:
            TypeError, ValueError: One is not, or does not go with another.
        """
        outputs = check_count("max_buffered", max_buffered, at_least=1)
        policy = check_on_overflow(on_overflow)
        if policy == "merge" and merge is None:
            raise TypeError(
                "on_overflow='merge' needs merge, a function of two neighbouring outputs that "
                "returns one: operator.add, for example, joins text and lists"
            )
        if merge is not None and policy != "merge":
            raise TypeError(
                f"merge goes with on_overflow='merge', got on_overflow={on_overflow!r}: pass that, "
                f"or leave merge out"
            )
        if size_of is not None and max_buffered_bytes is None:
            raise TypeError(
                "size_of says what an output takes of max_buffered_bytes, which was not given: "
                "pass that, or leave size_of out"
            )
        check_function("merge", merge, "two outputs", arguments=2)
        check_function("size_of", size_of, "one output", arguments=1)
        if max_buffered_bytes is not None:
            max_buffered_bytes = check_count("max_buffered_bytes", max_buffered_bytes, at_least=1)
        return cls(outputs, policy, merge, max_buffered_bytes, size_of)

    @property
    def ends_streams(self) -> bool:
        """Whether a stream that holds too much is ended, so that no source waits for it."""
        merges_any_number = self.on_overflow == "merge" and self.max_buffered_bytes is None
        return self.on_overflow != "wait" and not merges_any_number


def check_known(taker: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options by name that there are not.

    Raises:
        TypeError: There is one.
    """
    names = list(known)
    for name in options:
        if name not in names:
            import difflib  # noqa: PLC0415 - for this error alone

            near = difflib.get_close_matches(name, names, 1)
            raise TypeError(
                f"{taker} takes no {name}" + "".join(f": did you mean {it}?" for it in near)
            )


def check_eos(eos: object, is_eos: object) -> None:
    """Check an end mark and a predicate.

    Raises:
        TypeError: The predicate cannot be called, or is a coroutine function.
        ValueError: The end mark could never be recognised by identity.
    """
    if eos is not EOS and type(eos) in MARKER_TYPES:
        raise ValueError(f"eos must not be a marker that means something else, got {eos!r}")
    instead = what_finds(eos)
    if instead is not None:
        if callable(eos):
            raise ValueError(
                f"eos takes the object that marks an end in the steps, got the function {eos!r}: "
                f"pass {instead}"
            )
        raise ValueError(
            f"eos is compared by identity, which does not hold for {type(eos).__name__} {eos!r}: "
            f"pass {instead}"
        )
    check_is_eos(is_eos)


def check_is_eos(is_eos: object, *, returned_by: object = None) -> None:
    """Check a predicate on outputs, or None for no predicate.

    Args:
        is_eos: The predicate.
        returned_by: The `per_request(...)` whose function has returned it, if one has.

    Raises:
        TypeError: The predicate cannot be called, or is a coroutine function.
    """
    if is_eos is None:
        return
    takes = "is_eos takes" if returned_by is None else f"what {returned_by!r} returns must be"
    if not callable(is_eos):
        found = what_finds(is_eos)
        if returned_by is None:
            instead = f"pass {found or f'eos={is_eos!r}'}"
        elif isinstance(is_eos, bool):
            instead = "pass its function as is_eos itself if it takes an output"
        else:
            found = (found or "a function that is true of the last output").removeprefix("is_eos=")
            instead = f"return {found}, or None for a request that no output ends"
        raise TypeError(f"{takes} a function of one output, got {is_eos!r}: {instead}")
    if is_eos is token_ids:
        raise TypeError(
            f"{takes} a function of one output, got token_ids, which makes one: call it with the "
            f"ids that end a sequence, token_ids(2)"
        )
    if is_kind(inspect.iscoroutinefunction, is_eos):
        raise TypeError(
            f"{takes} a function that answers at once, got the coroutine function {is_eos!r}, "
            f"whose coroutine is true of every output: write it with def"
        )
    for kind in (inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        if is_kind(kind, is_eos):
            raise TypeError(
                f"{takes} a function that answers at once, got the generator function {is_eos!r}, "
                f"whose generator is true of every output: let it return True or False"
            )


def is_kind(kind: Callable[[Any], bool], function: Any) -> bool:
    """Whether a function is of this kind, or an object that is called like one."""
    while isinstance(function, functools.partial):
        function = function.func
    return kind(function) or kind(getattr(type(function), "__call__", None))  # noqa: B004


def takes(function: Callable[..., Any], arguments: int) -> bool:
    """Whether a function can be called with so many arguments, as far as Python knows."""
    try:
        # Its own: a decorator may pass more to what it wraps.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # of one that is written in C, for example
        return True
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def call_text(function: Any) -> str:
    """Return the name of a function that `takes` says no of, with its parameters."""
    name = getattr(function, "__name__", None) or repr(function)
    kind = "the class " if isinstance(function, type) else ""
    return f"{kind}{name}{inspect.signature(function, follow_wrapped=False)}"


def check_max_outputs(max_outputs: object, size: int) -> list[int]:
    """Return the limit of each slot, `UNLIMITED` where it has none."""
    if not isinstance(max_outputs, Sequence) or isinstance(max_outputs, str | bytes):
        return [check_limit(max_outputs) or UNLIMITED] * size
    if len(max_outputs) != size:
        raise ValueError(
            f"max_outputs has {len(max_outputs)} entries, expected {size} (one per slot)"
        )
    return [check_limit(limit) or UNLIMITED for limit in max_outputs]


def check_limit(max_outputs: object) -> int | None:
    """Return the limit of one slot, None where it has none."""
    if max_outputs is None:
        return None
    return min(check_count("max_outputs", max_outputs, at_least=1), UNLIMITED)


def check_size(size: object, max_outputs: object) -> int:
    """Return the size of a batch, or if it is unknown how many slots its limits are for."""
    if size is None:
        return len(max_outputs) if isinstance(max_outputs, Sequence) else 0
    return check_count("size", size, at_least=0)


def check_count(name: str, value: object, *, at_least: int) -> int:
    """Return the argument as a whole number.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is less than `at_least`.
    """
    number = check_whole(name, value)
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    return number


def check_whole(name: str, value: object) -> int:
    """Return the argument as a whole number, of either sign; a plain one, of no class of a user's.

    Raises:
        TypeError: It is no whole number.
    """
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} takes a whole number, got {value!r}")
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"{name} takes a whole number, got {value!r}") from error


def check_seconds(name: str, value: object) -> float:
    """Return the argument as a duration.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, infinite or NaN.
    """
    seconds = check_number(name, value)
    if math.isinf(seconds):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return seconds


def check_name(name: str, value: object) -> str:
    """Return the argument as a name.

    Raises:
        TypeError: It is no string.
        ValueError: It is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} takes a string, got {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty: leave it out, for a name that is made")
    return value


def check_number(name: str, value: Any) -> float:
    """Return the argument as a number of at least 0.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or NaN.
    """
    if isinstance(value, bool | str) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not number >= 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return number


def check_on_overflow(on_overflow: object) -> OnOverflow:
    """Return the argument, "wait", "cancel" or "merge".

    Raises:
        ValueError: It is none of them.
    """
    policies: tuple[OnOverflow, ...] = ("wait", "cancel", "merge")
    for policy in policies:
        if isinstance(on_overflow, str) and on_overflow == policy:
            return policy
    raise ValueError(f"on_overflow must be 'wait', 'cancel' or 'merge', got {on_overflow!r}")


def check_function(name: str, function: Any, of: str, *, arguments: int) -> None:
    """Check a function that is called with outputs, and returns at once; or None.

    Raises:
        TypeError: It is no such function.
    """
    if function is None:
        return
    if not callable(function):
        raise TypeError(f"{name} takes a function of {of}, got {function!r}")
    for kind in (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    ):
        if is_kind(kind, function):
            raise TypeError(
                f"{name} takes a function of {of} that returns at once, got {function!r}: write it "
                f"with def and return"
            )
    if not takes(function, arguments):
        raise TypeError(f"{name} is called with {of}, which {call_text(function)} does not take")
