"""`python -m petct_lib`: the commands of `cli`."""

import sys

from petct_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
