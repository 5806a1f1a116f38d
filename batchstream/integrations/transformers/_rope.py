"""What a model's config says of its rotary positions."""

from __future__ import annotations

from typing import Any


def scalings(config: Any) -> list[dict[str, Any]]:
    """Return how a text config scales rotary positions: once, or for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [each for each in (rope, *rope.values()) if isinstance(each, dict)]


def is_longrope(scaling: dict[str, Any]) -> bool:
    """Whether a row beyond the original length turns the positions of all rows beside it."""
    return scaling.get("rope_type") == "longrope"


def depends_on_length(config: Any) -> bool:
    """Whether the angles of all rows of a batch depend on the length of its longest row."""
    # As transformers asks: "dynamic" is part of several names.
    return any(
        is_longrope(each) or "dynamic" in str(each.get("rope_type")) for each in scalings(config)
    )
