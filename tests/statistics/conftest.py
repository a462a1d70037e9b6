"""Let the simulations beside the tests be imported by them and by coverage_table.py alike."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
