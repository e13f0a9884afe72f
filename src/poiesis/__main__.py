"""`python -m poiesis` is `poiesis`."""

import sys

from poiesis.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
