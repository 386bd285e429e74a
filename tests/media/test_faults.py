"""Whatever goes wrong while an output is written: nothing half, nothing left, nothing lost."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from osp_cli.errors import (
    InvalidRequestError,
    RuntimeFailureError,
    WontFitError,
)
from osp_cli.media.files import atomic_output, check_free_space, leftovers
from osp_cli.media.sinks import open_sink, read_recipe

OUTPUTS = ["clip.mp4", "clip.gif", "clip.webp", "frames/%04d.png"]
BY_FFMPEG = OUTPUTS[:2]
EVERY = pytest.mark.parametrize("output", OUTPUTS)
RECIPE = {"prompt": "pan", "seed": 7}


def sink(folder: Path, output: str, *, overwrite: bool = False, seed: int = 7):
    recipe = {**RECIPE, "seed": seed}
    return open_sink(folder / output, fps=16, recipe=recipe, overwrite=overwrite)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder and its contents; hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hidden_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def noise(num_frames: int = 40) -> np.ndarray:
    """What no format can make small."""
    return np.random.default_rng(0).integers(0, 256, (num_frames, 96, 128, 3), dtype=np.uint8)


@EVERY
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError, OSError])
@pytest.mark.parametrize("after", [0, 1, 9])
def test_frames_that_end_in_an_exception(tmp_path, frames, output, error, after):
    sink(tmp_path, output).write(frames)
    before = snapshot(tmp_path)

    def breaking():
        yield from frames[:after]
        raise error("on purpose")

    with pytest.raises(error, match="on purpose"):
        sink(tmp_path, output, overwrite=True, seed=8).write(breaking())
    assert snapshot(tmp_path) == before

    with pytest.raises(error, match="on purpose"):
        sink(tmp_path, f"other-{output}").write(breaking())
    assert snapshot(tmp_path) == before
    assert not hidden_in(tmp_path)


@EVERY
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_at_the_last_flush(tmp_path, frames, output, code, monkeypatch):
    sink(tmp_path, output).write(frames)
    before = snapshot(tmp_path)

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WontFitError, match="no space left") as caught:
            sink(tmp_path, output, overwrite=True, seed=8).write(frames)
    assert caught.value.exit_code == 4
    assert snapshot(tmp_path) == before
    assert not hidden_in(tmp_path)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True, capture_output=True)


@EVERY
def test_full_disk_for_real(tiny_disk, output):
    sink(tiny_disk, output).write(noise(1))
    before = snapshot(tiny_disk)
    with pytest.raises(WontFitError, match="no space left"):
        sink(tiny_disk, output, overwrite=True, seed=8).write(noise())
    assert snapshot(tiny_disk) == before
    assert not hidden_in(tiny_disk)


LIMITED = """
import resource, sys
import numpy as np
from osp_cli.errors import OspError
from osp_cli.media.sinks import open_sink
noise = np.random.default_rng(0).integers(0, 256, (40, 96, 128, 3), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    open_sink(sys.argv[1], fps=16, recipe={}).write(noise)
except OspError as error:
    print(error.exit_code, error)
"""


@EVERY
def test_a_limit_on_the_size_of_files(tmp_path, output):
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / output)], capture_output=True, text=True
    )
    assert done.stdout.startswith("4 "), done.stderr
    assert "larger than a file may be" in done.stdout
    assert list(tmp_path.iterdir()) == []


@EVERY
def test_the_folder_is_removed_midway(tmp_path, frames, output):
    home = tmp_path / "home"
    home.mkdir()

    def slow():
        yield from frames[:5]
        shutil.rmtree(home)
        yield from frames[5:]

    with pytest.raises(RuntimeFailureError):
        sink(home, output).write(slow())
    assert list(tmp_path.iterdir()) == []


@EVERY
def test_a_read_only_folder_is_refused_early(tmp_path, output, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InvalidRequestError, match="may not be written"):
        sink(tmp_path, output)


@EVERY
@pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 0)() == 0, reason="the superuser may write everywhere"
)
def test_a_folder_that_becomes_read_only_midway(tmp_path, frames, output):
    def slow():
        yield from frames
        tmp_path.chmod(0o555)

    try:
        with pytest.raises(InvalidRequestError, match="may not be written"):
            sink(tmp_path, output).write(slow())
    finally:
        tmp_path.chmod(0o755)
    assert not (tmp_path / output).exists()


@pytest.mark.parametrize("output", BY_FFMPEG)
@pytest.mark.parametrize("body", ["head -c 20000 >&2; kill -9 $$", "cat > /dev/null; exit 1"])
def test_failing_ffmpeg(tmp_path, frames, output, body, fake_ffmpeg):
    sink(tmp_path, output).write(frames)
    before = snapshot(tmp_path)
    fake_ffmpeg(body)
    with pytest.raises(RuntimeFailureError, match="ffmpeg stopped"):
        sink(tmp_path, output, overwrite=True, seed=8).write(frames)
    assert snapshot(tmp_path) == before
    assert not hidden_in(tmp_path)


ENDLESS = """
import sys
import numpy as np
from osp_cli.media import ffmpeg
from osp_cli.media.sinks import open_sink

genuine = ffmpeg._start
def start(*args, **kwargs):
    process = genuine(*args, **kwargs)
    print(process.pid, flush=True)
    return process
ffmpeg._start = start

def endless():
    while True:
        for index in range(100):
            yield np.full((48, 64, 3), index, np.uint8)
        print("running", flush=True)

open_sink(sys.argv[1], fps=16, recipe={}).write(endless())
"""


def is_running(pid: int) -> bool:
    """Whether a process lives and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("output", BY_FFMPEG)
def test_ffmpeg_does_not_outlive_us(tmp_path, output):
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ours:
        assert ours.stdout is not None
        ffmpeg = int(ours.stdout.readline())
        assert ours.stdout.readline() == "running\n"
        assert is_running(ffmpeg)
        ours.kill()
    deadline = time.monotonic() + 30
    while is_running(ffmpeg) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(ffmpeg)
    # What there is of the clip stays out of sight, and the next run can have the name.
    assert all(entry.name.startswith(".") for entry in tmp_path.iterdir())
    assert hidden_in(tmp_path)


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_run_after_a_kill_clears_up(tmp_path, frames, output):
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ours:
        deadline = time.monotonic() + 30
        while not hidden_in(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        ours.kill()
    time.sleep(1)
    stale = hidden_in(tmp_path)
    assert stale
    long_ago = time.time() - 3600
    for name in stale:
        os.utime(tmp_path / name, (long_ago, long_ago))
    sink(tmp_path, output).write(frames)
    assert not hidden_in(tmp_path)
    assert read_recipe(tmp_path / output) == RECIPE


def leftover(folder: Path, pid: int, *, age: float, name: str = "clip.mp4") -> Path:
    path = folder / f".{name}.{pid}.part{Path(name).suffix}"
    path.write_bytes(b"half a clip")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_file(path: Path) -> None:
    with atomic_output(path) as part:
        part.write_bytes(b"whole")


def test_leftovers_of_the_dead_go(tmp_path, dead_pid):
    stale = leftover(tmp_path, dead_pid, age=3600)
    write_file(tmp_path / "clip.mp4")
    assert not stale.exists()


@pytest.mark.parametrize("case", ["alive", "young", "of another output", "of another kind"])
def test_what_may_still_be_wanted_stays(tmp_path, dead_pid, case):
    match case:
        case "alive":
            kept = leftover(tmp_path, os.getppid(), age=3600)
        case "young":
            # Its process may live on another machine that shares the disk.
            kept = leftover(tmp_path, dead_pid, age=60)
        case "of another output":
            kept = leftover(tmp_path, dead_pid, age=3600, name="clip2.mp4")
        case _:
            kept = leftover(tmp_path, dead_pid, age=3600, name="clip.gif")
    write_file(tmp_path / "clip.mp4")
    assert kept.read_bytes() == b"half a clip"


def test_names_that_only_look_like_leftovers_stay(tmp_path, dead_pid):
    names = [".clip.mp4.part.mp4", ".clip.mp4.12x.part.mp4", "clip.mp4.1.part.mp4", ".clip.mp4.bak"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    assert leftovers(tmp_path / "clip.mp4", "part.mp4") == []


def test_long_names_do_not_share_leftovers(tmp_path, dead_pid):
    """File systems allow 255 bytes: what is cut from a long name still tells it apart."""
    names = ["é" * 110 + f"{number}.mp4" for number in range(2)]
    for name in names:
        with atomic_output(tmp_path / name) as part:
            renamed = part.name.replace(str(os.getpid()), str(dead_pid))
            part.write_bytes(b"whole")
        (tmp_path / renamed).touch()
        os.utime(tmp_path / renamed, (1, 1))
    assert len(hidden_in(tmp_path)) == 2
    (tmp_path / names[0]).unlink()
    write_file(tmp_path / names[0])
    assert len(hidden_in(tmp_path)) == 1


def test_nobody_is_asked_where_asking_kills(tmp_path, dead_pid, monkeypatch):
    """On Windows `os.kill(pid, 0)` sends Ctrl-C."""
    stale = leftover(tmp_path, dead_pid, age=3600)
    monkeypatch.setattr("osp_cli.media.files.os.kill", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("osp_cli.media.files.os.name", "nt")
    assert leftovers(tmp_path / "clip.mp4", "part.mp4") == []
    assert stale.exists()


def test_a_file_that_is_open_elsewhere(tmp_path, monkeypatch):
    """Windows does not replace what a player has open."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")

    def busy(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(Path, "replace", busy)
    with (
        pytest.raises(InvalidRequestError, match="open in another program"),
        atomic_output(path, overwrite=True) as part,
    ):
        part.write_bytes(b"new")
    assert path.read_bytes() == b"old"
    assert not hidden_in(tmp_path)


def test_a_python_without_links(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "link")
    write_file(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == b"whole"


def test_free_space(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_free_space(tmp_path, free // 2, what="the video")
    with pytest.raises(WontFitError) as caught:
        check_free_space(tmp_path / "not" / "yet" / "there", free * 4, what="the video")
    assert caught.value.exit_code == 4
    assert "the video" in caught.value.message
    assert f"{free * 4 / 1e9:.1f} GB" in caught.value.message


@pytest.mark.parametrize(
    ("free", "needed", "words"),
    [(5 * 10**9, 7 * 10**9, "5.0 GB free.*7.0 GB"), (100_000, 3 * 10**6, "0.1 MB free.*3.0 MB")],
)
def test_free_space_in_words(tmp_path, monkeypatch, free, needed, words):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, free))
    with pytest.raises(WontFitError, match=words):
        check_free_space(tmp_path, needed, what="the video")


def test_unknown_free_space_refuses_nothing(tmp_path, monkeypatch):
    def unknown(_: Path) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    check_free_space(tmp_path, 10**18, what="the video")


STREAM = """
import sys
import numpy as np
from osp_cli.errors import OspError
from osp_cli.media.sinks import open_sink
clip = np.random.default_rng(0).integers(0, 256, (40, 96, 128, 3), dtype=np.uint8)
try:
    saved = open_sink("-", fps=16, recipe={"seed": 7}).write(clip)
    print(saved, file=sys.stderr)
except BrokenPipeError:
    print("closed", file=sys.stderr)
    sys.stderr.flush()
    import os
    os._exit(0)
except OspError as error:
    print(error.exit_code, error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def stream(folder: Path, stdout: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", STREAM], stdout=stdout, stderr=-1, env=environment)
    return subprocess.CompletedProcess([], done.returncode, "", done.stderr.decode())


def test_a_clip_on_stdout_is_the_one_of_a_file(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    with (tmp_path / "out.mp4").open("wb") as file:
        done = stream(folder, file)
    size = (tmp_path / "out.mp4").stat().st_size
    assert f"path=PosixPath('-'), bytes={size}, sidecar=None" in done.stderr
    assert list(folder.iterdir()) == []
    open_sink(tmp_path / "same.mp4", fps=16, recipe={"seed": 7}).write(noise())
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "same.mp4").read_bytes()
    assert read_recipe(tmp_path / "out.mp4") == {"seed": 7}


def test_nobody_reads_stdout(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = stream(tmp_path, writer)
    os.close(writer)
    assert done.stderr == "closed\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_stdout_is_full(tmp_path):
    with Path("/dev/full").open("wb") as full:
        done = stream(tmp_path, full)
    assert "4 no space left to write stdout" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_space_to_prepare_a_stream(tiny_disk, tmp_path):
    with (tmp_path / "out.mp4").open("wb") as file:
        done = stream(tiny_disk, file)
    assert done.returncode == 4
    assert "to prepare the video" in done.stderr
    assert (tmp_path / "out.mp4").stat().st_size == 0
    assert list(tiny_disk.iterdir()) == []


def test_a_terminal_gets_no_video(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(InvalidRequestError, match="terminal") as caught:
        open_sink("-", fps=16, recipe={})
    assert "|" in (caught.value.hint or "")
