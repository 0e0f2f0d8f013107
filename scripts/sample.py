"""The same as ``dsdiff sample``."""

import sys

from ldm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
