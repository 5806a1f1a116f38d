"""What a command says before it ends with status 1."""

from __future__ import annotations

from importlib.util import find_spec


class CommandError(Exception):
    """A command cannot go on; its text says why, and what to do."""


def check_installed(package: str, why: str, *extras: str) -> None:
    """Refuse to go on without a package.

    Args:
        package: The name by which it is imported.
        why: What needs it, the beginning of a sentence: `the demonstration needs LitServe`.
        extras: The extras of this package that install all that is needed.

    Raises:
        CommandError: It is not installed.
    """
    if find_spec(package) is None:
        raise CommandError(
            f"{why}, which is not installed: install batchstream with its "
            f"extra{'s' if len(extras) > 1 else ''} {' and '.join(extras)}, in a "
            f'checkout with: pip install ".[{",".join(extras)}]"'
        )
