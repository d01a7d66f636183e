"""`rdmakit bench scale` as a program of its own: `python benchmarks/scale.py --out scale.json --plot scale.svg`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, nothing need be installed

from rdmakit.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "scale", *sys.argv[1:]]))
