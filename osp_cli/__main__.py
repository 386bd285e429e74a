"""`python -m osp_cli` is the `osp` command."""

from __future__ import annotations

import sys

from osp_cli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
