"""`python -m rdmakit.compat` prints the directory to put on PYTHONPATH; see the package."""

from pathlib import Path

print(Path(__file__).resolve().parent)
