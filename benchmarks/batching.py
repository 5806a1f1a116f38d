"""Requests in, streams out: how full the steps are, what a step and a request cost, idling.

Runs every batcher that is installed, and says which is not.
"""

from __future__ import annotations

import argparse

import idle
import refilling
import serving
import stepping


def main(*, quick: bool = False) -> None:
    """Print all tables."""
    refilling.main(quick=quick)
    print()
    stepping.main(quick=quick)
    print()
    serving.main(quick=quick)
    print()
    idle.main(quick=quick)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    main(quick=parser.parse_args().quick)
