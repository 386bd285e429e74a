"""Several processes of one command: one exit code, one voice, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from osp_cli.errors import OspError
from osp_cli.runtime import train_launch
from osp_cli.runtime.train_launch import is_launched, launch

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="--gpus does not work there")


@pytest.fixture(autouse=True)
def workers(tmp_path, monkeypatch):
    """In place of `osp`, a program that imports no torch; here, and in `run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        train_launch, "_COMMAND", (sys.executable, str(TESTS / "launched_worker.py"))
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def told(folder, rank):
    pid, meeting, *values = (folder / f"{rank}.told").read_text().split("\n")
    return int(pid), Path(meeting), values


def is_running(pid):
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def wait_until(true, seconds=15.0):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.02)


PROGRAM = """
import json, sys
from osp_cli.errors import OspError
from osp_cli.runtime import train_launch
train_launch._COMMAND = tuple(json.loads(sys.argv[1]))
try:
    sys.exit(train_launch.launch(sys.argv[3:], int(sys.argv[2])))
except OspError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def run(*argv, processes=2, **options):
    """A launcher of its own, of which the words are known to have been read."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(train_launch._COMMAND), str(processes), *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    wait_until(lambda: all(Path(f"{rank}.told").exists() for rank in range(processes)))
    return process


def test_they_know_who_they_are_and_nothing_is_left(tmp_path):
    assert launch(["exit-0"], 3) == 0
    meetings = set()
    for rank in range(3):
        pid, meeting, values = told(tmp_path, rank)
        assert values == [str(rank), str(rank), "3", "3", "127.0.0.1", "1"]
        assert not is_running(pid)
        meetings.add(meeting)
    [meeting] = meetings
    assert not meeting.parent.exists()


def test_the_first_alone_is_heard(capfd):
    assert launch(["0:say-one", "1:say-two"], 2) == 0
    assert capfd.readouterr() == ("one", "one")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["exit-2"], 2),
        (["exit-130"], 130),
        (["0:exit-1", "1:finish"], 1),
        # Who is left behind notices, and ends with 1.
        (["0:exit-4", "1:exit-1"], 4),
    ],
)
def test_the_failure_s_exit_code_is_the_run_s(tmp_path, monkeypatch, words, code):
    monkeypatch.setattr(train_launch, "_GRACE_SECONDS", 0.5)
    assert launch(words, 2) == code
    assert not any(is_running(told(tmp_path, rank)[0]) for rank in (0, 1))


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (
            ["1:error-out of memory", "0:error-left behind", "1:exit-4", "0:exit-1"],
            *(4, "process 2 of 2: out of memory", "less of it"),
        ),
        (["1:error-bad luck", "1:exit-1", "wait"], 1, "process 2 of 2: bad luck", "less of it"),
        (["1:say-boom", "1:exit-1", "wait"], 1, "process 2 of 2: boom", None),
        (["1:exit-3", "wait"], 3, "process 2 of 2: exit code 3", None),
        (["1:signal-9", "wait"], 1, "process 2 of 2 was killed by SIGKILL", "memory"),
        (["0:signal-11", "wait"], 1, "process 1 of 2 was killed by SIGSEGV", None),
    ],
)
def test_what_another_process_tells_is_told(
    tmp_path, monkeypatch, words, code, message, hint
):  # fmt: skip
    monkeypatch.setattr(train_launch, "_GRACE_SECONDS", 0.5)
    with pytest.raises(OspError) as caught:
        launch(words, 2)
    assert (caught.value.message, caught.value.exit_code) == (message, code)
    assert caught.value.hint is None if hint is None else hint in caught.value.hint
    assert not any(is_running(told(tmp_path, rank)[0]) for rank in (0, 1))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_once(signum):
    process = run("finish")
    process.send_signal(signum)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (128 + signum, "", "")
    heard = sorted(Path("signals").read_text().split())
    assert heard == [f"{rank}:{signum:d}" for rank in (0, 1)]


def test_ctrl_c_on_the_terminal_reaches_them_once_too():
    """It goes to all processes of the terminal's group, of which they are none."""
    process = run("finish", start_new_session=True)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert sorted(Path("signals").read_text().split()) == ["0:2", "1:2"]


def test_two_signals_end_also_those_that_do_not_hear(tmp_path, monkeypatch):
    monkeypatch.setattr(train_launch, "_GRACE_SECONDS", 0.3)
    pid = os.fork()
    if pid == 0:
        os._exit(launch(["deaf"], 2))
    wait_until(lambda: (tmp_path / "0.told").exists() and (tmp_path / "1.told").exists())
    time.sleep(0.3)
    for count in (1, 2):
        os.kill(pid, signal.SIGINT)
        wait_until(lambda n=count: len(Path("signals").read_text().split()) == 2 * n
                   if Path("signals").exists() else False)  # fmt: skip
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert not any(is_running(told(tmp_path, rank)[0]) for rank in (0, 1))


def test_none_is_left_when_the_launcher_is_killed(tmp_path):
    process = run("wait", processes=3)
    pids = [told(tmp_path, rank)[0] for rank in range(3)]
    meeting = told(tmp_path, 0)[1]
    assert all(is_running(pid) for pid in pids)
    process.kill()
    process.communicate(timeout=20)
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    wait_until(lambda: not meeting.parent.exists())


def test_it_is_the_same_command_that_is_started(capfd, monkeypatch):
    monkeypatch.undo()
    assert launch(["--version"], 2) == 0
    out, err = capfd.readouterr()
    assert out.startswith("osp ")
    assert (out.count("\n"), err) == (1, "")


def test_who_was_started_by_another_launcher_starts_nobody():
    assert is_launched({"RANK": "0", "WORLD_SIZE": "1"})
    assert not is_launched({"WORLD_SIZE": "1"})
    assert not is_launched({})
