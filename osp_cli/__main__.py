"""`python -m osp_cli` is the `osp` command."""

from __future__ import annotations

import os
import sys

from osp_cli.cli.app import main

if __name__ == "__main__":
    if "OSP_LAUNCHER" in os.environ:
        from osp_cli.runtime.train_launch import watch_launcher

        watch_launcher()
    sys.exit(main())
