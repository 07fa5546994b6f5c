"""`python -m ecsfusion`: the command line, where the command `ecsfusion` is not on the path."""

import sys

from ecsfusion.cli import main

if __name__ == "__main__":
    sys.exit(main())
