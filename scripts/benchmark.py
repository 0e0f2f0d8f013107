"""The same as ``dsdiff benchmark``."""

import sys

from ldm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
