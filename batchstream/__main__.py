"""The commands: `python -m batchstream top` and `python -m batchstream demo`."""

import sys

from batchstream._cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
