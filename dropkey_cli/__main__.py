"""``python -m dropkey_cli``: the same as ``dropkey``."""

import sys

from dropkey_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
