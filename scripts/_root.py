"""Imported first by every script: the package beside this folder is the one that runs, installed or
not, from any folder.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
