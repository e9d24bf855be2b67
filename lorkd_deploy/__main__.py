"""`python -m lorkd_deploy` is `lorkd`."""

from __future__ import annotations

import sys

from lorkd_deploy.cli import main

if __name__ == "__main__":
    sys.exit(main())
