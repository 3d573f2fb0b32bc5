"""`python -m aqua_daemon` and the `aqua-daemon` script."""

from __future__ import annotations

import sys

from aqua_daemon.cli import main

if __name__ == "__main__":
    sys.exit(main())
