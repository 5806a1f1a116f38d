"""Equal keys, and equal tenants, as one object each; without the user's code under a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.requests.request import Request
    from batchstream._batching.waiting.places import Place
    from batchstream._batching.waiting.queue import WaitingQueue

TIDY_ABOVE: Final = 64
"""How many keys a generation has at least before another begins."""


class KeyInterner:
    """Turns equal keys into one object for as long as requests with that key wait.

    Keys are the user's: to hash and compare them is the user's code, which must not run under a
    lock. So `intern` is called without one, and what it returned is checked with it, by
    `is_current`.

    There are generations of keys, the youngest first. A key that is interned is in the youngest;
    when that has grown another begins. An older one is dropped once none of its requests waits any
    more, but for keys that a younger one has too. So a request that waits for long keeps the
    generation of its key, and no later one.

    Args:
        name: What returns the keys, for an error text.
    """

    def __init__(self, name: str = "key") -> None:
        self._name = name
        self._generations: tuple[dict[Hashable, object], ...] = ({},)

    def intern(self, key: Hashable) -> tuple[object, object]:
        """Return the object for a key, and what to ask `is_current` with.

        Raises:
            TypeError: The key cannot be hashed.
            Exception: What hashing or comparing it raises.
        """
        generations = self._generations
        young = generations[0]
        try:
            group = young.get(key)
        except TypeError as error:
            raise TypeError(
                f"{self._name} returns {key!r}, which cannot be hashed: {error}"
            ) from error
        if group is None:
            known = (older[key] for older in generations[1:] if key in older)
            # Setting a default is atomic, so that of two threads both get the same.
            group = young.setdefault(key, next(known, None) or object())
        return group, generations

    def is_current(self, generations: object) -> bool:
        """Whether the object that was returned with these may be used; with the lock."""
        return generations is self._generations

    def tidy(self, waits: Callable[[object], bool]) -> object:
        """Drop keys of which no request waits, if there are many; with the lock.

        Args:
            waits: Returns whether requests with the key of an object wait.

        Returns:
            What the caller frees without the lock: to free a key may run the user's code.
        """
        if len(self._generations[0]) <= TIDY_ABOVE:
            return None
        kept: list[dict[Hashable, object]] = []
        dropped: list[dict[Hashable, object]] = []
        found: set[int] = set()  # by identity, as the objects live in what is kept
        for generation in self._generations:
            # A list: a thread that is about to intern a key may still add it.
            waiting = {id(each) for each in list(generation.values()) if waits(each)}
            if not kept or not waiting <= found:
                kept.append(generation)
                found |= waiting
            else:
                dropped.append(generation)
        self._generations = ({}, *kept)
        return dropped or None


class RequestKeys:
    """What stands for the keys and the tenants of one batcher's requests.

    Args:
        options: What the batcher was made with.
    """

    def __init__(self, options: BatcherOptions[Any, Any]) -> None:
        self._has_any = not (options.key is None and options.places is None)
        self._keys = KeyInterner()
        self._tenants = KeyInterner("tenant")

    def intern(self, request: Request[Any], key: Any) -> tuple[object, object]:
        """Set what stands for a request's key and tenant; return what `are_current` takes."""
        keys = tenants = None
        if key is not None:
            request.group, keys = self._keys.intern(key)
        if (place := request.place) is not None:
            tenants = self.intern_tenant(place)
        return keys, tenants

    def intern_tenant(self, place: Place) -> object:
        """Set what stands for the tenant of a place; return what `are_current` takes for it."""
        place.account, tenants = self._tenants.intern(place.tenant)
        return tenants

    def are_current(self, keys: object, tenants: object) -> bool:
        """Whether what stands for a request's key and tenant may be used; with the lock."""
        if keys is not None and not self._keys.is_current(keys):
            return False
        return tenants is None or self._tenants.is_current(tenants)

    def tidy(self, queue: WaitingQueue[Any]) -> object:
        """Drop keys and tenants of which no request waits; return what to free without the lock."""
        if not self._has_any:
            return None
        return self._keys.tidy(queue.has_group), self._tenants.tidy(queue.has_tenant)
