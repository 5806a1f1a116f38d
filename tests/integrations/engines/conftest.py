"""Lets the tests import what examples/engines has, as its programs do."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "examples" / "engines"))
