"""Outputs on their way to a client: what is sent of them, and what users' functions get.

What waits for a client in a server process has been encoded and formatted in the worker: it is text
or bytes. Where a function of the user's is called there, to merge or to measure, a dict or a
pydantic model of the worker's goes as a `JsonText`. The function gets the dict that it reads as.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from litserve import LitAPI
from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class JsonText:
    """A dict or a pydantic model, as LitServe formats it.

    Attributes:
        text: What is sent.
    """

    text: str


Sent: TypeAlias = "str | bytes | JsonText"
"""What a server process gets of an output."""


def mark_json(data: str | bytes, output: object) -> Sent:
    """Return what is sent of an output, marked if LitServe has formatted it as JSON."""
    if isinstance(output, dict | BaseModel) and isinstance(data, str):
        return JsonText(data)
    return data


def data_of(sent: Sent) -> str | bytes:
    """Return what a client gets."""
    return sent.text if isinstance(sent, JsonText) else sent


def output_of(sent: Sent) -> Any:
    """Return what a function of the user's gets."""
    return json.loads(sent.text) if isinstance(sent, JsonText) else sent


def sent_of(output: object, given: str) -> Sent:
    """Return what is sent of what a function of the user's has returned.

    Args:
        output: That.
        given: Begins the text of an error: which function, and what it may return.

    Raises:
        TypeError: It is nothing that can be sent.
        Exception: It cannot be formatted.
    """
    # LitServe's own, which uses no API: one that formats its outputs by itself has none marked.
    format_output: Any = LitAPI.format_encoded_response
    return mark_json(text_or_bytes(format_output(None, output), given), output)


def text_or_bytes(data: object, given: str, hint: str = "") -> str | bytes:
    """Return an output as a type that every transport and every client can take.

    Args:
        data: The output.
        given: Begins the text of an error: what may be given, and where.
        hint: Ends it, for a list or a tuple.

    Raises:
        TypeError: It is neither text nor bytes.
        UnicodeEncodeError: It is text with half a surrogate pair.
    """
    if isinstance(data, str):
        text = str.__str__(data)  # the text of a subclass alone: its class may not unpickle
        if not text.isascii():
            text.encode()
        return text
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    also = hint if isinstance(data, list | tuple) else ""
    raise TypeError(f"{given}, got {type(data).__name__}{also}")
