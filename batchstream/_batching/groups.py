"""Which requests may share a batch: one object for each key, so that keys need not be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_MANY: Final = 64  # keys, that need not be tidied up


class Groups:
    """Turns equal keys into one object for as long as requests with that key wait.

    Keys are the user's: to hash and compare them is the user's code, which must not run under a
    lock. So `of` is called without one, and what it returned is checked with it, by `is_current`.

    There are two generations. A key that is asked for is in the younger one; when that has grown it
    becomes the older one, and that is dropped once none of its requests waits any more.
    """

    def __init__(self) -> None:
        self._generations: tuple[dict[Hashable, object], dict[Hashable, object]] = {}, {}

    def of(self, key: Hashable) -> tuple[object, object]:
        """Return the object for a key, and what to ask `is_current` with.

        Raises:
            TypeError: The key cannot be hashed.
            Exception: What hashing or comparing it raises.
        """
        generations = young, old = self._generations
        try:
            group = young.get(key)
        except TypeError as error:
            raise TypeError(f"key returns {key!r}, which cannot be hashed: {error}") from error
        if group is None:
            # Setting a default is atomic, so that of two threads both get the same.
            group = young.setdefault(key, old.get(key) or object())
        return group, generations

    def is_current(self, generations: object) -> bool:
        """Whether the object that was returned with these may be used; with the lock."""
        return generations is self._generations

    def tidy(self, has_waiting: Callable[[object], bool]) -> object:
        """Let go of keys that nobody needs, if there are many; with the lock.

        Args:
            has_waiting: Tells whether requests of a group wait.

        Returns:
            What is to be let go of without the lock.
        """
        young, old = self._generations
        if len(young) <= _MANY or any(map(has_waiting, old.values())):
            return None
        self._generations = {}, young
        return old
