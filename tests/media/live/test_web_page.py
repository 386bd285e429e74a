"""The page of a stream, over HTTP and in a real browser: what it shows, and whom it refuses."""

from __future__ import annotations

import http.client
import json
import runpy
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from osp_cli.errors import InvalidRequestError
from osp_cli.media.live import LiveEvents, count_frames
from osp_cli.media.live.broadcast import Broadcast

_STREAMS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "streams.py")))
chunk, open_stream, numbers_in = _STREAMS.chunk, _STREAMS.open_stream, _STREAMS.numbers_in
wait_until = _STREAMS.wait_until
_BROWSER = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "browser.py")))

STATUS = {"chunk": 41, "seconds": 56.4, "realtime_factor": 1.05, "prompt": "<b>a tunnel</b>"}


class Live:
    """A stream with a page, and what was said to it."""

    def __init__(self, folder: Path, **more) -> None:
        self.said: list[str] = []
        events = LiveEvents(status=lambda: STATUS, steer=self.steer)
        self.sink = open_stream(folder / "clip.mp4", "http", events=events, **more)
        (self.address,) = self.sink.addresses
        parts = urlsplit(self.address)
        self.host, self.port, self.base = parts.netloc, parts.port, parts.path

    def steer(self, line: str) -> str | None:
        self.said.append(line)
        return "there is no style foo" if "foo" in line else None

    def ask(self, path: str, *, base: str | None = None, method="GET", body=None, **headers):
        """An answer's code, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(
                method,
                (self.base if base is None else base) + path,
                body=body,
                headers={"Host": self.host, **headers},
            )
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def say(self, line: str | bytes, **headers):
        data = line if isinstance(line, bytes) else line.encode()
        code, _, body = self.ask("steer", method="POST", body=data, **headers)
        return code, json.loads(body)


@pytest.fixture
def live(tmp_path):
    live = Live(tmp_path, fps=48)
    yield live
    live.sink.abort()


def watch(live: Live, path: Path) -> threading.Thread:
    """Save what a viewer gets; starts before the first frame, so that none is missed."""
    thread = threading.Thread(target=lambda: path.write_bytes(live.ask("stream")[2]))
    thread.start()
    assert wait_until(lambda: json.loads(live.ask("status")[2])["viewers"] > 0)
    return thread


def test_the_stream_is_whole_and_in_order(live, tmp_path):
    first = watch(live, tmp_path / "one.mjpeg")
    second = threading.Thread(
        target=lambda: (tmp_path / "two.mjpeg").write_bytes(live.ask("stream")[2])
    )
    second.start()
    assert wait_until(lambda: json.loads(live.ask("status")[2])["viewers"] == 2)
    for index in range(4):
        live.sink.write(chunk(6 * index))
    live.sink.close()
    for thread in (first, second):
        thread.join(5)
        assert not thread.is_alive()
    for name in ("one.mjpeg", "two.mjpeg"):
        assert numbers_in(tmp_path / name) == list(range(24))
    with pytest.raises(OSError):
        live.ask("status")


def test_who_comes_late_sees_the_picture_of_now(live):
    live.sink.write(chunk(0))
    assert wait_until(lambda: json.loads(live.ask("status")[2])["frames_shown"] == 6)
    with socket.create_connection(("127.0.0.1", live.port), timeout=5) as viewer:
        viewer.sendall(f"GET {live.base}stream HTTP/1.1\r\nHost: {live.host}\r\n\r\n".encode())
        data = b""
        # The boundary after the picture is there too, without which browsers do not show it.
        while data.count(b"--osp-frame") < 2:
            data += viewer.recv(65536)
    assert b"multipart/x-mixed-replace" in data
    assert b"\xff\xd8\xff" in data
    assert b"\xff\xd9\r\n--osp-frame" in data


def test_slow_viewers_hold_up_nobody_and_skip_to_the_present(tmp_path):
    live = Live(tmp_path, fps=240, chunk_frames=60)
    viewer = socket.socket()
    viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    viewer.connect(("127.0.0.1", live.port))
    with viewer:
        viewer.sendall(f"GET {live.base}stream HTTP/1.1\r\nHost: {live.host}\r\n\r\n".encode())
        assert wait_until(lambda: json.loads(live.ask("status")[2])["viewers"] == 1)
        noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
        started = time.monotonic()
        for _ in range(12):
            live.sink.write(noise)
        assert wait_until(lambda: json.loads(live.ask("status")[2])["skipped"] > 0, 5)
        assert time.monotonic() - started < 8
    live.sink.abort()
    assert live.sink.notices == [
        f"watch and steer the stream at {live.address}",
        "a viewer of the page is too slow for the stream and skips pictures",
    ]


def test_a_broadcast_forgets_no_viewer_and_keeps_no_picture():
    broadcast = Broadcast(size=4)
    frame = chunk(0)[0]
    quick, slow = broadcast.join(2), broadcast.join(2)
    assert broadcast.join(2) is None
    for index in range(10):
        assert broadcast.publish(frame) == (index in (4, 8))
        assert quick.take(1) is not None
    assert (quick.skipped, slow.skipped, broadcast.skipped) == (0, 8, 8)
    assert [slow.take(0) is None for _ in range(3)] == [False, False, True]
    broadcast.end()
    assert slow.is_over
    broadcast.leave(slow)
    assert broadcast.num_viewers == 1


def test_a_viewer_that_leaves_is_noticed(live):
    live.sink.write(chunk(0))
    with socket.create_connection(("127.0.0.1", live.port), timeout=5) as viewer:
        viewer.sendall(f"GET {live.base}stream HTTP/1.1\r\nHost: {live.host}\r\n\r\n".encode())
        assert viewer.recv(100)
        assert json.loads(live.ask("status")[2])["viewers"] == 1
    assert wait_until(lambda: json.loads(live.ask("status")[2])["viewers"] == 0, 10)


def test_the_page_and_its_parts_allow_nothing_from_elsewhere(live):
    for path, kind in (("", "html"), ("page.css", "css"), ("page.js", "javascript")):
        code, headers, body = live.ask(path)
        assert code == 200
        assert kind in headers["Content-Type"]
        assert b"http" not in body.replace(b"http://www.w3.org/2000/svg", b"")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


def test_the_status(live):
    code, headers, body = live.ask("status")
    assert code == 200
    assert headers["Content-Type"] == "application/json"
    shown = json.loads(body)
    assert STATUS.items() <= shown.items()
    assert (shown["viewers"], shown["rebuffers"], shown["ended"]) == (0, 0, False)


def test_lines_reach_the_stream(live):
    assert live.say("  es regnet, früh ") == (200, {"taken": "es regnet, früh"})
    assert live.say("style: foo") == (422, {"error": "there is no style foo"})
    own = f"http://{live.host}"
    assert live.say("rain", Origin=own, **{"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert live.said == ["es regnet, früh", "style: foo", "rain"]


def test_lines_that_are_none(live):
    for line in ("", "   ", "two\nlines", "bell\a", b"\xff\xfe", "\u202etxt"):
        assert live.say(line)[0] == 422
    assert live.said == []


def test_a_line_is_bounded(live):
    assert live.say("x" * 4096)[0] == 200
    assert live.say("x" * 4097)[0] == 413
    for length, code in (("99999999999999", 413), ("-1", 411), ("+5", 411), ("abc", 411)):
        with socket.create_connection(("127.0.0.1", live.port), timeout=5) as client:
            head = f"POST {live.base}steer HTTP/1.1\r\nHost: {live.host}\r\nContent-Length: "
            client.sendall(f"{head}{length}\r\n\r\n".encode())
            assert client.recv(1000).split()[1] == str(code).encode()
    assert len(live.said) == 1


def test_other_pages_do_not_steer(live):
    for headers in (
        {"Host": "evil.example:80"},
        {"Host": ""},
        {"Host": "127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        assert live.say("rain", **headers)[0] == 403
    assert live.said == []


def test_without_the_token_there_is_nothing(live):
    wrong = ["/", "/status/", "//", "/x/../", "/aaaaaaaaaaaaaaaaaaaaaa/", live.base[:-2] + "/"]
    for base in [*wrong, live.base.rstrip("/")]:
        for path in ("", "status", "stream"):
            assert live.ask(path, base=base)[0] == 404


def test_a_name_bent_to_this_machine(live):
    for path in ("", "status", "stream"):
        assert live.ask(path, Host=f"evil.example:{live.port}")[0] == 403
    assert live.ask("status", Host=f"localhost:{live.port}")[0] == 200


def test_other_paths_and_methods(live):
    assert live.ask("../../etc/passwd")[0] == 404
    assert live.ask("index.html")[0] == 404
    assert live.ask("", method="PUT")[0] == 501
    assert live.ask("status", method="POST", body=b"x")[0] == 404


def test_only_this_machine_and_a_new_token_each_time(live, tmp_path):
    assert live.sink._feeders[0]._target._server.server_address[0] == "127.0.0.1"
    other = open_stream(tmp_path / "other.mp4", "http")
    assert urlsplit(other.addresses[0]).path != live.base
    assert len(live.base) >= 22
    other.abort()


def test_a_port_of_ones_own_and_one_that_is_taken(live, tmp_path):
    with pytest.raises(InvalidRequestError, match=f"port {live.port} is taken"):
        open_stream(tmp_path / "clip.mp4", f"http:{live.port}")
    live.sink.abort()
    again = open_stream(tmp_path / "clip.mp4", f"http:{live.port}")
    assert urlsplit(again.addresses[0]).port == live.port
    again.abort()


def test_a_crowd_is_bounded(live):
    def served() -> int:
        names = [thread.name for thread in threading.enumerate()]
        return sum("process_request_thread" in name for name in names)

    # Viewers of streams before this one may still be on their way out.
    earlier = served()
    crowd = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(80)]
    time.sleep(0.3)
    assert served() <= 64 + earlier
    for client in crowd:
        client.close()

    def answers() -> bool:
        # Until the last of the crowd has gone, a newcomer may find the door shut.
        try:
            return live.ask("status")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    assert wait_until(answers)


def test_the_file_and_the_page_together(tmp_path):
    events = LiveEvents(status=dict)
    sink = open_stream(tmp_path / "clip.mp4", "file", "http", fps=240, events=events)
    for index in range(4):
        sink.write(chunk(6 * index))
    assert sink.close().path == tmp_path / "clip.mp4"
    assert count_frames(tmp_path / "clip.mp4") == 24


@pytest.mark.skipif(_BROWSER.find() is None, reason="no Chromium here")
def test_in_a_real_browser(live, tmp_path):
    stop = threading.Event()

    def feed() -> None:
        index = 0
        while not stop.is_set():
            live.sink.write(chunk(index % 250))
            index += 6

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    with _BROWSER.Browser(tmp_path / "profile") as browser:
        try:
            browser.open(live.address)
            browser.wait_for("document.getElementById('stream')?.naturalWidth === 64")
            # The picture moves: its bars, read from the screen, count.
            browser.value(
                """window.seen = new Set(); setInterval(() => {
                const canvas = document.createElement("canvas");
                canvas.width = 64; canvas.height = 48;
                const context = canvas.getContext("2d");
                context.drawImage(document.getElementById("stream"), 0, 0);
                const pixels = context.getImageData(0, 24, 64, 1).data;
                seen.add([0,1,2,3,4,5,6,7].map((bar) => +(pixels[bar * 32 + 16] > 120)).join(""));
                }, 5); 1"""
            )
            browser.wait_for("seen.size > 20")
            browser.wait_for("document.getElementById('numbers').textContent.includes('1.05')")
            # What the stream says is text, never markup.
            prompt = browser.value("document.getElementById('prompt').innerHTML")
            assert prompt == "&lt;b&gt;a tunnel&lt;/b&gt;"
            for line, fate in (("it rains", "taken"), ("style: foo", "refused")):
                browser.value(
                    f"""(() => {{ const line = document.getElementById("line");
                    line.value = "{line}"; line.form.requestSubmit(); }})()"""
                )
                browser.wait_for(f"document.querySelector('#said li')?.className === '{fate}'")
            assert live.said == ["it rains", "style: foo"]
            refused = browser.value("document.querySelector('#said small').textContent")
            assert refused == "there is no style foo"
            # The refusal is told as one; nothing else goes wrong.
            assert [problem for problem in browser.problems() if "422" not in problem] == []
        finally:
            stop.set()
            feeder.join()
            closing = threading.Thread(target=live.sink.close)
            closing.start()
        browser.wait_for("document.getElementById('state').dataset.state === 'ended'")
        assert browser.value("document.getElementById('line').disabled")
        closing.join()
