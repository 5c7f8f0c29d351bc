"""Lets the model run where torch is, but the server's audio libraries are not: `import` it, or ``pytest -p`` it, first.

Nothing that reads or writes sound files works then.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

MISSING = [name for name in ("sphn", "soxr") if importlib.util.find_spec(name) is None]
for name in MISSING:
    sys.modules[name] = ModuleType(name)
