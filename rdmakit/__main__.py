"""`python -m rdmakit`: the same as the `rdmakit` command."""

import sys

from rdmakit.cli import main

if __name__ == "__main__":
    sys.exit(main())
