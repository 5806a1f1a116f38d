"""What the clients do: the same for both servers, and for each run with the same seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from batchstream._cli.errors import CommandError

_TYPICAL: Final = 14  # words of a reply: as many are shorter as are longer
_SPREAD: Final = 0.9  # of the logarithm
_SHORTEST, _LONGEST = 4, 90
BETWEEN: Final = 0.01
"""The seconds between two clients, so that they come to both servers in the same order."""


@dataclass(frozen=True)
class Client:
    """One client.

    Attributes:
        number: Which, from 0 on; it comes as this one.
        length: How many words its reply has.
        leaves_after: After how many words it hangs up; None if it stays to the end.
    """

    number: int
    length: int
    leaves_after: int | None = None

    @property
    def takes(self) -> int:
        """How many words it reads."""
        return self.length if self.leaves_after is None else self.leaves_after


def script(count: int, seed: int) -> list[Client]:
    """Return the clients. The lengths of their replies have a long tail, and a quarter hang up.

    The longer a reply, the likelier its client hangs up: with twice the length, twice as likely. It
    does so in the first half of the reply.

    Raises:
        CommandError: There would be none that hangs up, or none that stays.
    """
    if count < 4:  # noqa: PLR2004 - a quarter of them hang up
        raise CommandError(f"of {count} clients no quarter can hang up: pass --clients 4 or more")
    random_ = random.Random(seed)  # noqa: S311 - no secret
    lengths = [
        min(max(round(random_.lognormvariate(math.log(_TYPICAL), _SPREAD)), _SHORTEST), _LONGEST)
        for _ in range(count)
    ]
    leaving: set[int] = set()
    while len(leaving) < count // 4:
        leaving.update(random_.choices(range(count), weights=lengths))
    return [
        Client(
            number,
            length,
            random_.randint(1, length // 2) if number in leaving else None,
        )
        for number, length in enumerate(lengths)
    ]
