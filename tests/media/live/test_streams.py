"""Stdout, players, addresses, playlists; several targets at once; their ends and their faults."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from osp_cli.errors import InvalidRequestError, RuntimeFailureError, WontFitError
from osp_cli.media import ffmpeg
from osp_cli.media.live import LiveEvents, count_frames, parse_targets
from osp_cli.media.live.targets import parse_target

_STREAMS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "streams.py")))
CHUNK, chunk, is_running = _STREAMS.CHUNK, _STREAMS.chunk, _STREAMS.is_running
open_stream, numbers_in, wait_until = (
    _STREAMS.open_stream,
    _STREAMS.numbers_in,
    _STREAMS.wait_until,
)

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from streams import chunk, open_stream
from osp_cli.errors import OspError
try:
    sink = open_stream(Path("-"), *sys.argv[2:], fps=240)
    print(sink.is_live, file=sys.stderr)
    for index in range(20):
        sink.write(chunk(6 * index))
    print(sink.close(), file=sys.stderr)
except BrokenPipeError as error:
    print("closed:", error, file=sys.stderr)
    sink.abort()
except OspError as error:
    sink.abort()
    print(error.exit_code, error, file=sys.stderr)
"""


def program(*targets: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), *targets]


def noise(seed: int) -> np.ndarray:
    """A chunk that no codec makes small."""
    return np.random.default_rng(seed).integers(0, 256, (CHUNK, 48, 64, 3), dtype=np.uint8)


def noise_until(sink, error: type[Exception], **more):
    with pytest.raises(error, **more) as caught:
        for index in range(500):
            sink.write(noise(index))
    return caught.value


@pytest.mark.parametrize(("target", "start"), [("file", b"\x1aE\xdf\xa3"), ("stdout:y4m", b"YUV4")])
def test_a_pipe_gets_the_stream_while_it_is_made(tmp_path, target, start):
    with subprocess.Popen(program(target), stdout=-1, stderr=-1) as ours:
        data, told = ours.communicate(timeout=30)
    assert data.startswith(start)
    (tmp_path / "out").write_bytes(data)
    assert numbers_in(tmp_path / "out") == list(range(120))
    assert told.decode().split() == ["True", "None"]


def test_a_file_as_stdout_is_not_held_to_the_clock(tmp_path):
    with (tmp_path / "out.mkv").open("wb") as out:
        done = subprocess.run(program("stdout"), stdout=out, stderr=-1, timeout=30)
    assert done.stderr.split() == [b"False", b"None"]
    assert count_frames(tmp_path / "out.mkv") == 120


@pytest.mark.parametrize("target", ["stdout", "stdout:y4m"])
def test_the_reader_of_stdout_leaves(target):
    with subprocess.Popen(program(target), stdout=-1, stderr=-1) as ours:
        assert ours.stdout.read(4)
        ours.stdout.close()
        told = ours.stderr.read().decode()
    assert told.endswith("closed: nobody reads stdout any more\n")
    assert ours.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_stdout_is_full():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(program("stdout"), stdout=full, stderr=-1, timeout=30)
    assert b"\n4 no space left to write stdout" in done.stderr


def test_a_terminal_gets_no_stream(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(InvalidRequestError, match="terminal") as caught:
        open_stream(Path("-"))
    assert "| mpv" in caught.value.hint


@pytest.fixture
def player(tmp_path, monkeypatch):
    """Put a shell script in mpv's place."""

    def install(body: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "mpv").write_text(f"#!/bin/sh\n{body}\n")
        (folder / "mpv").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return tmp_path / "shown"

    return install


def test_a_player_gets_all_and_ends_with_the_stream(tmp_path, player):
    shown = player(f'cat > "{tmp_path}/shown"')
    sink = open_stream(tmp_path / "clip.mp4", "mpv", fps=240)
    assert sink.is_live
    for index in range(4):
        sink.write(chunk(6 * index))
    assert sink.close() is None
    assert numbers_in(shown) == list(range(24))
    assert not (tmp_path / "clip.mp4").exists()


def test_a_player_that_is_closed_ends_the_stream(tmp_path, player):
    player("exit 0")
    sink = open_stream(tmp_path / "clip.mp4", "mpv", fps=240)
    noise_until(sink, BrokenPipeError, match="nobody reads mpv any more")
    sink.abort()


def test_no_player(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidRequestError, match="mpv is not installed") as caught:
        open_stream(tmp_path / "clip.mp4", "file", "mpv")
    assert "--sink http" in caught.value.hint


def test_the_file_does_not_mind_that_the_player_ends(tmp_path, player):
    player("head -c 2000 > /dev/null")
    heard = []
    sink = open_stream(
        tmp_path / "clip.mp4", "file", "mpv", fps=240, events=LiveEvents(notice=heard.append)
    )
    for index in range(20):
        sink.write(chunk(6 * index))
        time.sleep(0.02)
    assert not sink.is_live
    assert sink.close().path == tmp_path / "clip.mp4"
    assert numbers_in(tmp_path / "clip.mp4") == list(range(120))
    assert heard == sink.notices == ["nobody reads mpv any more; the stream goes on without mpv"]


def test_the_file_does_not_wait_for_a_player_that_stands_still(tmp_path, player):
    player("exec sleep 60")
    sink = open_stream(tmp_path / "clip.mp4", "file", "mpv", fps=240)
    started = time.monotonic()
    for index in range(60):
        sink.write(noise(index))
    assert sink.close().path == tmp_path / "clip.mp4"
    assert time.monotonic() - started < 8
    assert count_frames(tmp_path / "clip.mp4") == 360
    assert sink.notices[0] == "mpv takes nothing: the stream goes on, frames are left out"


def test_a_stream_that_nobody_takes_can_be_stopped(tmp_path, player):
    """Alone, a player that is paused holds the stream; a stop gets through all the same."""
    player("exec sleep 60")
    sink = open_stream(tmp_path / "clip.mp4", "mpv", fps=240)
    written = []

    def write() -> None:
        for index in range(200):
            sink.write(noise(index))
            written.append(index)

    thread = threading.Thread(target=write)
    thread.start()
    assert wait_until(lambda: len(written) > 3)
    before = -1
    while before != len(written):
        before = len(written)
        time.sleep(0.5)
    assert len(written) < 100
    sink.abort()
    thread.join(5)
    assert not thread.is_alive()


def test_viewers_are_kept_to_the_clock_and_the_file_is_not(tmp_path, player):
    player("exec cat > /dev/null")
    sink = open_stream(tmp_path / "clip.mp4", "file", "mpv", fps=24)
    started = time.monotonic()
    for index in range(6):
        sink.write(chunk(6 * index))
    # 36 frames take 1.5 s to show. Two chunks may be ahead of the clock, no more.
    assert time.monotonic() - started > 0.9
    assert wait_until(lambda: count_frames(tmp_path / "clip.recording.mp4") >= 35, 3)
    time.sleep(1.2)
    sink.write(chunk(36))
    sink.close()
    assert sink.rebuffers >= 1


def test_unpaced(tmp_path, player):
    player("exec cat > /dev/null")
    sink = open_stream(tmp_path / "clip.mp4", "mpv", fps=1, paced=False)
    started = time.monotonic()
    sink.write(chunk(0))
    sink.close()
    assert time.monotonic() - started < 4
    assert not sink.is_live


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_player_and_ffmpeg_do_not_outlive_us(tmp_path, player):
    player(f'echo $$ > "{tmp_path}/pid"; exec cat > /dev/null')
    endless = PROGRAM.replace("range(20)", "range(10**6)")
    command = [sys.executable, "-c", endless, str(Path(__file__).parent), "mpv"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as ours:
        assert wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        time.sleep(0.3)
        children = [int((tmp_path / "pid").read_text())]
        tasks = Path(f"/proc/{ours.pid}/task").glob("*/children")
        children += [int(number) for path in tasks for number in path.read_text().split()]
        assert len(set(children)) == 2
        ours.kill()
    assert wait_until(lambda: not any(map(is_running, children)))


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def receiver(address: str, *options: str, path: Path) -> subprocess.Popen[bytes]:
    command = [ffmpeg.ffmpeg_exe(), "-v", "error", "-y", *options, "-i", address]
    return subprocess.Popen([*command, "-c", "copy", "-f", "matroska", str(path)], stdin=-3)


def test_udp(tmp_path):
    port = free_port(socket.SOCK_DGRAM)
    with receiver(f"udp://127.0.0.1:{port}?timeout=1000000", path=tmp_path / "got.mkv") as there:
        time.sleep(0.5)
        sink = open_stream(tmp_path / "clip.mp4", f"udp://127.0.0.1:{port}", fps=96)
        for index in range(12):
            sink.write(chunk(6 * index))
        sink.close()
        there.wait(15)
    got = numbers_in(tmp_path / "got.mkv")
    # Nobody sends a datagram twice, and a listener begins where a picture stands alone.
    assert got == list(range(got[0], got[0] + len(got)))
    assert len(got) > 48


def test_rtmp_and_the_key_that_nobody_sees(tmp_path):
    port = free_port()
    address = f"rtmp://127.0.0.1:{port}/live/secret-key"
    with receiver(address, "-listen", "1", path=tmp_path / "got.mkv") as there:
        time.sleep(0.5)
        sink = open_stream(tmp_path / "clip.mp4", address, fps=48)
        for index in range(8):
            sink.write(chunk(6 * index))
        sink.close()
        there.wait(15)
    assert numbers_in(tmp_path / "got.mkv") == list(range(48))

    sink = open_stream(tmp_path / "clip.mp4", address, fps=240)
    error = noise_until(sink, RuntimeFailureError, match=f"rtmp://127.0.0.1:{port} ended")
    assert "secret" not in f"{error} {error.hint}"
    sink.abort()


@pytest.mark.parametrize("end", ["clean", "killed"])
def test_a_playlist_and_going_on_with_it(tmp_path, end):
    playlist = tmp_path / "it's live.m3u8"
    sink = open_stream(tmp_path / "clip.mp4", str(playlist), fps=240)
    for index in range(4):
        sink.write(chunk(6 * index))
    if end == "clean":
        sink.close()
        assert "#EXT-X-ENDLIST" in playlist.read_text()
    else:
        assert wait_until(playlist.exists)
        time.sleep(0.3)
        encoder = sink._feeders[0]._target._encoder
        os.kill(encoder.pid, signal.SIGKILL)
        sink.abort()
    there = count_frames(playlist)
    assert there >= 18
    frames = there - there % 6
    sink = open_stream(tmp_path / "clip.mp4", str(playlist), fps=240, first_frame=frames)
    for index in range(4):
        sink.write(chunk(frames + 6 * index))
    sink.close()
    got = numbers_in(playlist)
    assert got[-24:] == list(range(frames, frames + 24))
    assert got == sorted(got)
    with pytest.raises(InvalidRequestError, match="exists already"):
        open_stream(tmp_path / "clip.mp4", str(playlist))
    open_stream(tmp_path / "clip.mp4", str(playlist), overwrite=True, fps=240).write(chunk(0))


def test_two_players_and_one_that_ends(tmp_path, player):
    """Without a file the stream lasts as long as its last target."""
    player("exit 0")
    playlist = tmp_path / "live.m3u8"
    sink = open_stream(tmp_path / "clip.mp4", "mpv", str(playlist), fps=240)
    for index in range(12):
        sink.write(chunk(6 * index))
    sink.close()
    assert numbers_in(playlist) == list(range(72))
    assert len(sink.notices) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("screen", "is no target"),
        ("", "is no target"),
        ("5%d.m3u8", "stands for the number"),
        ("stdout:avi", "cannot be avi"),
        ("http:99999", "at most 65535"),
        ("http://example.org/x.m3u8", "is no target"),
        ("file:///etc/passwd", "is no target"),
        ("concat:a|b", "is no target"),
        ("udp://127.0.0.1", "needs a port"),
        ("udp://127.0.0.1:port", "is no address"),
        ("rtmp:///live", "is no address"),
        ("rtmp://host/a b", "is no address"),
        ("srt://host:1\n", "is no address"),
    ],
)
def test_what_is_no_target(text, words):
    with pytest.raises(InvalidRequestError, match=words):
        parse_target(text)


def test_targets_that_do_not_go_together():
    for targets, words in ((["mpv", "mpv"], "twice"), ([], "no target")):
        with pytest.raises(InvalidRequestError, match=words):
            parse_targets(targets, Path("clip.mp4"))
    with pytest.raises(InvalidRequestError, match="one stream only"):
        parse_targets(["file", "stdout:y4m"], Path("-"))


def test_addresses():
    assert parse_target("udp://127.0.0.1:9000").address == "udp://127.0.0.1:9000?pkt_size=1316"
    assert parse_target("udp://[::1]:9000?ttl=1").address == "udp://[::1]:9000?ttl=1"
    assert parse_target("RTMPS://host:1/live/key").name == "rtmps://host:1"
    assert parse_target("srt://user:pass@host:1?passphrase=x").name == "srt://host:1"


def test_an_ffmpeg_that_cannot_send(tmp_path, fake_ffmpeg):
    fake_ffmpeg(
        'case "$*" in *-protocols) "$REAL" "$@" | grep -v srt;; *) exec "$REAL" "$@";; esac'
    )
    with pytest.raises(InvalidRequestError, match="cannot send to srt://"):
        open_stream(tmp_path / "clip.mp4", "srt://127.0.0.1:9000")


def test_the_live_target_does_not_hide_that_the_disk_is_full(tmp_path, player, monkeypatch):
    player("exec cat > /dev/null")
    sink = open_stream(tmp_path / "clip.mp4", "file", "mpv", fps=240)
    sink.write(chunk(0))

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WontFitError, match="no space left") as caught:
        sink.close()
    assert caught.value.kept == (tmp_path / "clip.recording.mp4",)
    assert numbers_in(tmp_path / "clip.recording.mp4") == list(range(6))
