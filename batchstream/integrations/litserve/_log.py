"""The logger of all processes, and the extra fields of its lines.

The fields are the same as in a batcher's lines, with the API in the place of the batcher: see
`batchstream._batching.reporting.log`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

logger: Final = logging.getLogger("batchstream.integrations.litserve")


def fields(kind: str, batcher: str, names: Sequence[str] = (), **more: object) -> dict[str, Any]:
    """Return the extra fields of a line.

    Args:
        kind: What it says; never changed.
        batcher: What metrics call the API.
        names: What clients call the requests that it is about, if it is about some.
        more: Other fields.
    """
    found = {"batcher": batcher, "kind": kind, **more}
    if names:
        found |= {"requests": len(names), "request_id": names[0]}
    return found
