"""What is wrong with a request, in OpenAI's words: the one fault to name of what pydantic found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COMBINATION: Final = "parameter_combination"
"""The type of an error about two parameters, whose context has the `param` and the `code`."""

_SHOWN: Final = 80  # characters of a value

# What a field takes, and its bounds, by pydantic's types of errors.
_EXPECTED: Final = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "string_type": "a string",
    "literal_error": "a string",  # where the value is none
    "enum": "a string",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_VALUES: Final = ("literal_error", "enum")
_BOUNDS: Final = {
    "greater_than_equal": ("ge", ">=", "below", "min"),
    "greater_than": ("gt", ">", "below", "min"),
    "less_than_equal": ("le", "<=", "above", "max"),
    "less_than": ("lt", "<", "above", "max"),
}
_LENGTHS: Final = {
    "too_short": ("an array", "short", "below", "min"),
    "too_long": ("an array", "long", "above", "max"),
    "string_too_short": ("a string", "short", "below", "min"),
    "string_too_long": ("a string", "long", "above", "max"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a request.

    Attributes:
        message: For people.
        param: The parameter, as `messages[0].content`; None for the request as a whole.
        code: OpenAI's name for faults of this kind, if it has one.
    """

    message: str
    param: str | None = None
    code: str | None = None


def fault_of(errors: Sequence[Mapping[str, Any]], body: Any) -> Fault:
    """Return the first fault of a request.

    Where a value may have several forms, pydantic tells what it lacks of each. The one that gets
    furthest into the value is of the form that the client meant.

    Args:
        errors: Pydantic's, at least one.
        body: The request.
    """
    located = [(_param_of(error, body), error) for error in errors]
    first, _ = located[0]
    inside = [pair for pair in located if _is_inside(pair[0], first)]
    param, error = max(inside, key=lambda pair: _depth(pair[0]))
    if _is_of_wrong_type(error):
        same = [each for place, each in inside if place == param and _is_of_wrong_type(each)]
        expected = dict.fromkeys(_EXPECTED[each["type"]] for each in same)
        return _wrong_type(list(expected), error.get("input"), param)
    if param is None:
        return _fault_of_whole(error)
    return _WORDINGS.get(error["type"], _other)(error, param)


def _fault_of_whole(error: Mapping[str, Any]) -> Fault:
    if error["type"] == COMBINATION:
        return Fault(error["msg"], error["ctx"]["param"], error["ctx"]["code"])
    if error["type"] == "json_invalid":
        return Fault(f"the body of the request is not JSON: {error['ctx']['error']}")
    if error["type"] == "missing":
        return Fault("the request has no body: send a JSON object")
    return Fault(_rule(error), None, "invalid_value")


def _is_of_wrong_type(error: Mapping[str, Any]) -> bool:
    kind = error["type"]
    if kind in _VALUES:
        return error["ctx"]["expected"].startswith("'") and not isinstance(error["input"], str)
    return kind in _EXPECTED


def _wrong_type(expected: list[str], got: Any, param: str | None) -> Fault:
    wanted = expected[0] if len(expected) == 1 else f"one of {' or '.join(expected)}"
    where = "the body" if param is None else repr(param)
    text = f"Invalid type for {where}: expected {wanted}, but got {_type_of(got)} instead."
    return Fault(text, param, "invalid_type")


def _missing(_error: Mapping[str, Any], param: str) -> Fault:
    return Fault(f"Missing required parameter: {param!r}.", param, "missing_required_parameter")


def _wrong_value(error: Mapping[str, Any], param: str) -> Fault:
    told = error["ctx"]
    if error["type"] == "union_tag_invalid":
        got, values = told["tag"], told["expected_tags"]
    else:
        got, values = error["input"], told["expected"]
    supported = " and ".join(values.rsplit(" or ", 1))
    text = f"Invalid value: {_shown(got)}. Supported values are: {supported}."
    return Fault(text, param, "invalid_value")


def _out_of_bounds(error: Mapping[str, Any], param: str) -> Fault:
    key, sign, side, end = _BOUNDS[error["type"]]
    bound = error["ctx"][key]  # in the type of the field: pydantic has converted it
    if not isinstance(bound, int | float):  # a date, for example
        return _other(error, param)
    number = "decimal" if isinstance(bound, float) else "integer"
    shown = f"{bound:g}" if isinstance(bound, float) else bound
    text = (
        f"Invalid {param!r}: {number} {side} {end}imum value. Expected a value {sign} {shown}, "
        f"but got {_shown(error['input'])} instead."
    )
    return Fault(text, param, f"{number}_{side}_{end}_value")


def _of_wrong_length(error: Mapping[str, Any], param: str) -> Fault:
    thing, adjective, side, end = _LENGTHS[error["type"]]
    noun, length = thing.split()[1], len(error["input"])
    is_empty = noun == "array" and length == 0
    text = (
        f"Invalid {param!r}: {'empty array' if is_empty else f'{noun} too {adjective}'}. Expected "
        f"{thing} with {end}imum length {error['ctx'][f'{end}_length']}, but got "
        f"{'an empty array' if is_empty else f'{thing} with length {length}'} instead."
    )
    return Fault(text, param, "empty_array" if is_empty else f"{noun}_{side}_{end}_length")


def _other(error: Mapping[str, Any], param: str) -> Fault:
    text = f"Invalid {param!r}: {_rule(error)}, got {_shown(error.get('input'))}"
    return Fault(
        text, param, "invalid_type" if error["type"].endswith("_type") else "invalid_value"
    )


_WORDINGS: Final[Mapping[str, Callable[[Mapping[str, Any], str], Fault]]] = {
    **dict.fromkeys(("missing", "union_tag_not_found"), _missing),
    **dict.fromkeys((*_VALUES, "union_tag_invalid"), _wrong_value),
    **dict.fromkeys(_BOUNDS, _out_of_bounds),
    **dict.fromkeys(_LENGTHS, _of_wrong_length),
}


def _rule(error: Mapping[str, Any]) -> str:
    """Return a rule of the user's class, in its words, or one of pydantic's."""
    rule: str = error["msg"]
    return rule.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _shown(value: Any) -> str:
    return f"{value!r:.{_SHOWN}}"


def _type_of(value: Any) -> str:
    """Return what JSON calls the type of a value."""
    types: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"),  # is an int for Python
        (int, "an integer"),
        (float, "a decimal number"),
        (str, "a string"),
        (list, "an array"),
        (dict, "an object"),
        (bytes, "a body that is not sent as application/json"),
    )
    if value is None:
        return "null"
    return next((name for type_, name in types if isinstance(value, type_)), type(value).__name__)


# ---- places


def _param_of(error: Mapping[str, Any], body: Any) -> str | None:
    """Return the place of a fault in a body, as `messages[0].content`.

    Pydantic names the members of a union on the way, too: what is not in the body is left out.
    """
    kind, location = error["type"], error["loc"][1:]
    path = ""
    for position, name in enumerate(location, 1):
        if isinstance(name, int):
            if isinstance(body, list):
                path, body = f"{path}[{name}]", body[name]
        elif isinstance(body, dict):
            is_missing = kind == "missing" and position == len(location)
            if name in body or is_missing:
                path, body = (f"{path}.{name}" if path else name), body.get(name)
    if kind.startswith("union_tag_"):
        name = error["ctx"]["discriminator"].strip("'")
        path = f"{path}.{name}" if path else name
    return path or None


def _is_inside(param: str | None, outer: str | None) -> bool:
    if param is None or outer is None:
        return param == outer
    return param == outer or param.startswith((f"{outer}.", f"{outer}["))


def _depth(param: str | None) -> int:
    return 0 if param is None else 1 + param.count(".") + param.count("[")
