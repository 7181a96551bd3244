"""The helpers of these tests are imported by name, as tests/tiny.py is; so is the made-up architecture of the contract."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "contract")]
