"""The logger of all processes."""

from __future__ import annotations

import logging
from typing import Final

logger: Final = logging.getLogger("batchstream.integrations.litserve")
