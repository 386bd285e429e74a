"""One of several processes that `train_launch` started, doing what its arguments tell; no torch.

`RANK:WORD` is for one of them: `exit-N`, `say-TEXT` on both streams, `error-TEXT` on stderr,
`signal-N` to itself, `wait`, `finish`, which waits for a signal and exits with 128 and its number,
`deaf`, which hears none. A word without a number is for all.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from osp_cli.runtime.train_launch import watch_launcher

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")


def heard(signum, _frame):
    with Path("signals").open("a") as file:
        file.write(f"{os.environ['RANK']}:{signum}\n")
    if not deaf:
        os._exit(128 + signum)


deaf = False
rank = os.environ["RANK"]
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, heard)
meeting = os.environ["OSP_MEETING"]
watch_launcher()
told = [os.environ.get(name, "") for name in NAMES]
Path(f"{rank}.part").write_text("\n".join([str(os.getpid()), meeting, *told]))
Path(f"{rank}.part").rename(f"{rank}.told")
for word in sys.argv[1:]:
    whose, _, what = word.rpartition(":")
    if whose not in ("", rank):
        continue
    what, _, value = what.partition("-")
    if what == "exit":
        sys.exit(int(value))
    elif what == "say":
        os.write(1, value.encode())
        os.write(2, value.encode())
    elif what == "error":
        os.write(2, f"error: {value}\nhint: less of it\n".encode())
    elif what == "signal":
        os.kill(os.getpid(), int(value))
    elif what == "deaf":
        deaf = True
        time.sleep(60)
    elif what in ("wait", "finish"):
        time.sleep(60)
