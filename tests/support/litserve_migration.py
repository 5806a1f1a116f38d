"""Runs a LitServe server of examples/migrations: `python litserve_migration.py NAME PORT`."""

import importlib
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parents[2] / "examples" / "migrations"

if __name__ == "__main__":
    name, port = sys.argv[1:]
    sys.path.append(str(PROGRAMS))  # for the workers too, which are new processes
    program = importlib.import_module(name)
    program.api.batch_timeout = 20  # a batch that is not full waits for the test
    program.server.run(host="127.0.0.1", port=int(port), generate_client_file=False)
