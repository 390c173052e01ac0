"""`python -m edgevlm` is the `edgevlm` command."""

from __future__ import annotations

import sys

from edgevlm.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
