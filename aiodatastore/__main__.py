"""``python -m aiodatastore`` is the command line."""

import sys

from aiodatastore.cli import main

if __name__ == "__main__":
    sys.exit(main())
