"""The same as ``dsdiff train``."""

import sys

from ldm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
