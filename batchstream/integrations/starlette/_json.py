"""JSON for one output: on a line of its own, whatever it is."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from datetime import date, time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

to_jsonable_python: Callable[..., Any] | None
try:
    # It refuses what it does not know; FastAPI's `jsonable_encoder` would send all attributes.
    from pydantic_core import to_jsonable_python
except ImportError:
    to_jsonable_python = None

# JSON lets these stand in a text as they are. But many clients split lines as `str.splitlines`
# does, at the first three as well, so that an output could pretend to be several lines; and no
# UTF-8 can hold the others, halves of a character.
_UNSAFE: Final = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def to_json(value: object) -> str:
    """Return a value as one line of JSON.

    Beside what JSON knows, the value may hold arrays, scalars and tensors (all that has a method
    `tolist`), dates, times and dataclasses; and whatever Pydantic can write, where it is installed:
    models, enums, sets, UUIDs and many more.

    Raises:
        TypeError: The value holds something else.
        ValueError: The value holds a float that JSON has no word for, or itself.
    """
    try:
        text = _encode(value)
    except (TypeError, ValueError) as error:
        error.add_note("encode= of the response says what is written for an output")
        raise
    return text if text.isascii() else _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _plain(value: Any) -> Any:
    """Return a value that `json` does not know in terms of values that it may know."""
    if hasattr(type(value), "tolist"):  # of NumPy, PyTorch, JAX
        return value.tolist()
    if isinstance(value, (date, time)):
        return value.isoformat()
    if is_dataclass(type(value)) and not hasattr(value, "__pydantic_serializer__"):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if to_jsonable_python is not None:
        return to_jsonable_python(value, fallback=_plain_in_pydantic)
    raise _refusal(value, "install pydantic, which knows more types, or ")


def _plain_in_pydantic(value: Any) -> Any:
    if hasattr(type(value), "tolist"):
        return value.tolist()
    raise _refusal(value, "")


def _refusal(value: object, advice: str) -> TypeError:
    kind = type(value)
    return TypeError(
        f"{kind.__module__}.{kind.__qualname__} cannot be written as JSON: {advice}"
        f"pass encode=, a function that makes an output text, numbers, lists and dicts"
    )


_encode: Final = json.JSONEncoder(
    ensure_ascii=False,
    allow_nan=False,  # it would be no JSON
    separators=(",", ":"),
    default=_plain,
).encode
