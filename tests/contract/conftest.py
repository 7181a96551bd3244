"""The contract's own modules are imported by name, as tests/tiny.py is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
