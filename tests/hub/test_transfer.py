"""Servers that cut, corrupt, lie, refuse and stall: the bytes are right, or there are none."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest
from fake_hub import COMMIT, FakeHub, Faults, digest_of
from hub_kit import contents
from huggingface_hub.utils import WeakFileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osp_cli.errors import ChecksumError, WeightsMissingError
from osp_cli.events import FileFetched, FileProgress, Notice
from osp_cli.hub import client, hashes
from osp_cli.hub.cache import Cache
from osp_cli.hub.client import Endpoint, Hub
from osp_cli.hub.listings import RemoteFile
from osp_cli.hub.transfer import Limiter, Transfer

DATA = contents(7, 700_000)
SMALL = b'{"a": 1}'


def file_of(path="big.bin", data=DATA):
    return RemoteFile(
        repo="own/one", commit=COMMIT, path=path, size=len(data), digest=digest_of(data)
    )


@pytest.fixture
def hub():
    server = FakeHub({"own/one": {"big.bin": DATA, "small.json": SMALL}})
    yield server
    server.close()


@pytest.fixture
def mirror():
    server = FakeHub({"own/one": {"big.bin": DATA, "small.json": SMALL}})
    yield server
    server.close()


OPEN = []


@pytest.fixture(autouse=True)
def closing():
    yield
    while OPEN:
        OPEN.pop().close()


class Fetcher:
    """A transfer into a cache below a folder, with what it reported."""

    def __init__(self, folder, *servers, limiter=None, token=None):
        OPEN.append(self)
        self.events, self.said = [], []
        self.cache = Cache(folder / "cache")
        self.hub = Hub([Endpoint(server.url, token) for server in servers], say=self.said.append)
        self._transfer = Transfer(
            self.hub, self.cache, limiter=limiter or Limiter(), report=self.events.append
        )

    def __call__(self, file=None):
        file = file or file_of()
        try:
            self._transfer.fetch(file)
        finally:
            self.blob = self.cache.blob(file)
        return self.blob.read_bytes()

    def leave_part(self, data, file=None):
        part = self.cache.part(file or file_of())
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)

    def close(self):
        self.hub.close()

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def leftovers(fetcher):
    return [path.name for path in fetcher.blob.parent.iterdir() if path != fetcher.blob]


@pytest.fixture
def fetch(tmp_path, hub):
    return Fetcher(tmp_path, hub)


# --- A server that behaves --------------------------------------------------------------------


@pytest.mark.parametrize(("path", "data"), [("big.bin", DATA), ("small.json", SMALL)])
def test_a_file_arrives_whole_under_the_name_of_its_hash(fetch, path, data):
    assert fetch(file_of(path, data)) == data
    assert leftovers(fetch) == []
    [event] = fetch.of(FileFetched)
    assert (event.digest, event.cached) == (digest_of(data), False)


def test_what_is_here_is_not_asked_for(fetch, hub):
    fetch()
    before = len(hub.log)
    fetch()
    assert len(hub.log) == before
    assert fetch.of(FileFetched)[-1].cached


def test_a_damaged_file_in_the_cache_is_fetched_again(fetch):
    fetch()
    fetch.blob.write_bytes(DATA[:-1] + b"?")
    assert fetch() == DATA
    assert "damaged" in fetch.of(Notice)[-1].message


def test_a_large_file_is_read_once_and_its_hash_remembered(fetch, monkeypatch):
    monkeypatch.setattr(hashes, "_REMEMBERED_BYTES", 1000)
    fetch()
    assert hashes.known_hash(fetch.blob) == hashlib.sha256(DATA).hexdigest()
    monkeypatch.setattr(Transfer, "digest_of", lambda *_: pytest.fail("read again"))
    fetch()
    fetch.blob.write_bytes(DATA[:-1] + b"?")
    assert hashes.known_hash(fetch.blob) is None


# --- Going on ---------------------------------------------------------------------------------


def test_it_goes_on_where_an_earlier_run_was_cut_off(fetch, hub):
    fetch.leave_part(DATA[:123_456])
    assert fetch() == DATA
    [headers] = hub.asked("path=big.bin", "cdn")
    assert headers["range"] == "bytes=123456-"
    assert leftovers(fetch) == []


@pytest.mark.parametrize(
    "part", [b"x" * 1000, DATA + b"more", DATA[:-1] + b"?", b""], ids=["torn", "long", "wrong", "0"]
)
def test_a_part_that_is_no_beginning_of_the_file_costs_time_but_no_bytes(fetch, part):
    fetch.leave_part(part)
    assert fetch() == DATA


def test_a_whole_part_needs_no_server(tmp_path):
    fetch = Fetcher(tmp_path)
    fetch.leave_part(DATA)
    assert fetch() == DATA


def test_a_cut_connection_is_taken_up_again(fetch, hub):
    hub.faults.cut_after = 100_000
    assert fetch() == DATA
    starts = [headers.get("range") for headers in hub.asked("path=big.bin", "cdn")]
    assert len(starts) >= 7
    assert None in starts[:1]
    assert None not in starts[1:]


def test_a_server_that_ignores_ranges_is_read_from_the_start(fetch, hub):
    hub.faults.no_ranges = True
    fetch.leave_part(b"not even the beginning of the file")
    assert fetch() == DATA


def test_a_server_that_ignores_ranges_and_cuts_ends_in_an_error(fetch, hub):
    # Each answer brings bytes, and none of them any further.
    hub.faults.no_ranges, hub.faults.cut_after = True, 100_000
    with pytest.raises(WeightsMissingError, match="cut the connection"):
        fetch()
    assert len(hub.asked("path=big.bin", "cdn")) == client.TRIES


def test_the_rest_is_only_added_to_the_same_contents(fetch, hub):
    hub.etag, hub.faults.cut_after = "one", 100_000
    genuine, answers = hub._send, []

    def send(ask, path, data, headers=None):
        answers.append(ask.headers.get("If-Range"))
        if len(answers) == 3:
            hub.etag = "another"
        genuine(ask, path, data, headers)
        if len(answers) == 3:
            hub.faults.cut_after = None

    hub._send = send
    assert fetch() == DATA
    assert answers[0] is None
    assert set(answers[1:3]) == {'"one"'}
    # The third answer began anew: what was there was of other contents, as far as one could tell.
    assert answers[3] == '"another"'


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.integers(0, 60_000),
    cuts=st.lists(st.integers(1, 70_000), max_size=6),
    ranges=st.booleans(),
    kept=st.integers(0, 60_000),
)
def test_wherever_it_is_cut_the_bytes_are_the_same(tmp_path_factory, hub, size, cuts, ranges, kept):
    data = DATA[:size]
    hub.repos["own/one"]["cut.bin"] = data
    hub.faults = Faults(no_ranges=not ranges)
    genuine = FakeHub._write
    left = list(cuts)

    def write(ask, body):
        hub.faults.cut_after = left.pop(0) if left else None
        genuine(hub, ask, body)

    hub._write = write
    fetch = Fetcher(tmp_path_factory.mktemp("cut"), hub)
    fetch.leave_part(data[:kept], file_of("cut.bin", data))
    try:
        assert fetch(file_of("cut.bin", data)) == data
    except WeightsMissingError:
        # Out of patience, which only a server without ranges can wear out.
        assert not ranges
        assert not fetch.blob.exists()


# --- Wrong bytes ------------------------------------------------------------------------------


def test_a_corrupt_file_is_fetched_once_more_from_the_start(fetch, hub):
    hub.faults.corrupt, hub.faults.corrupt_times = 5000, 1
    assert fetch() == DATA
    assert "range" not in hub.asked("path=big.bin", "cdn")[-1]
    assert any("damaged" in event.message for event in fetch.of(Notice))


@pytest.mark.parametrize(("path", "data"), [("big.bin", DATA), ("small.json", SMALL)])
def test_a_file_that_stays_corrupt_is_refused_with_both_hashes(fetch, hub, path, data):
    hub.faults.corrupt = 3
    wrong = bytearray(data)
    wrong[3] ^= 0xFF
    hasher = file_of(path, data).hasher()
    hasher.update(wrong)
    with pytest.raises(ChecksumError) as caught:
        fetch(file_of(path, data))
    for part in (path, digest_of(data), hasher.hexdigest()):
        assert part in caught.value.message
    assert caught.value.exit_code == 5
    assert leftovers(fetch) == []
    assert not fetch.blob.exists()


def test_the_second_try_is_the_next_servers(tmp_path, hub, mirror):
    mirror.faults.corrupt = 9
    fetch = Fetcher(tmp_path, mirror, hub)
    assert fetch() == DATA
    assert len(mirror.asked("path=big.bin", "cdn")) == 1
    assert len(hub.asked("path=big.bin", "cdn")) == 1


def test_a_body_that_is_too_long_is_read_as_far_as_the_file_goes(fetch, hub):
    hub.faults.body = lambda path, body: (None, body + b"trailing")
    assert fetch() == DATA


def test_a_body_that_ends_early_without_a_word_is_completed(fetch, hub):
    hub.faults.body = lambda path, body: (None, body[: len(body) // 2 + 1])
    assert fetch() == DATA


@pytest.mark.parametrize("declared", [5, 10**9])
def test_a_file_of_another_length_is_refused_before_it_is_read(fetch, hub, declared):
    fetch.leave_part(DATA[:1000])
    hub.faults.no_ranges = True
    hub.faults.body = lambda path, body: (declared, body)
    with pytest.raises(ChecksumError, match=f"{declared} bytes for big.bin instead of 700000"):
        fetch()
    # Nothing of it was taken, and what was here is still good.
    assert fetch.cache.part(file_of()).read_bytes() == DATA[:1000]


# --- Refusals and failover --------------------------------------------------------------------


def test_busy_servers_are_asked_again(fetch, hub):
    hub.faults.status = [(500, {}), (503, {}), (429, {"Retry-After": "0"})]
    assert fetch() == DATA


def test_the_wait_that_a_server_asks_for_is_kept(fetch, hub):
    hub.faults.status = [(429, {"Retry-After": "1"})]
    started = time.monotonic()
    assert fetch() == DATA
    assert time.monotonic() - started >= 1


def test_a_wait_beyond_all_patience_is_an_error(fetch, hub):
    hub.faults.status = [(429, {"Retry-After": "86400"})]
    with pytest.raises(WeightsMissingError, match=r"fewer requests \(429\)"):
        fetch()


def test_a_server_that_stays_busy_gives_way_to_the_next(tmp_path, hub, mirror):
    mirror.faults.status = [(503, {})] * 99
    assert Fetcher(tmp_path, mirror, hub)() == DATA
    assert len(mirror.asked("resolve")) == client.TRIES


def test_a_dead_server_gives_way_to_the_next_in_the_middle_of_a_file(tmp_path, hub, mirror):
    mirror.faults.cut_after = 100_000
    genuine = mirror._write

    def write(ask, body):
        genuine(ask, body)
        mirror.faults.status = [(500, {})] * 99

    mirror._write = write
    assert Fetcher(tmp_path, mirror, hub)() == DATA
    assert hub.asked("path=big.bin", "cdn")[0]["range"] == "bytes=100000-"


def test_what_all_servers_said_is_told(tmp_path, hub, mirror):
    del hub.repos["own/one"]["big.bin"]
    mirror.faults.status = [(403, {})]
    with pytest.raises(WeightsMissingError) as caught:
        Fetcher(tmp_path, mirror, hub)()
    assert "refuses big.bin (403)" in caught.value.message
    assert "no file big.bin" in caught.value.message


def test_a_silent_server_is_left(tmp_path, hub, mirror, monkeypatch):
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.2")
    monkeypatch.setattr(client, "TRIES", 1)
    mirror.faults.silent = True
    started = time.monotonic()
    assert Fetcher(tmp_path, mirror, hub)() == DATA
    assert time.monotonic() - started < 10


def test_the_token_stays_with_the_server_it_is_for(tmp_path, hub):
    Fetcher(tmp_path, hub, token="hf_secret")()
    [own] = hub.asked("resolve", "hub")
    assert own["authorization"] == "Bearer hf_secret"
    [other] = hub.asked("path=big.bin", "cdn")
    assert "authorization" not in other


# --- Side conditions --------------------------------------------------------------------------


def test_the_rate_is_kept_by_all_files_together(tmp_path, hub):
    fetch = Fetcher(tmp_path, hub, limiter=Limiter(1_000_000))
    started = time.monotonic()
    assert fetch() == DATA
    assert 0.4 < time.monotonic() - started < 20


def test_a_stop_keeps_what_came(fetch, hub):
    hub.faults.bytes_per_second = 400_000
    ended = []

    def work():
        with pytest.raises(client.Stopped):
            fetch()
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    part = fetch.cache.part(file_of())
    deadline = time.monotonic() + 5
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    fetch.hub.stop.set()
    thread.join(5)
    assert ended
    kept = part.read_bytes()
    assert kept
    assert kept == DATA[: len(kept)]


def test_progress_is_told_from_what_was_here_on(fetch):
    fetch.leave_part(DATA[:100_000])
    fetch()
    [check] = [event for event in fetch.of(FileProgress) if event.stage == "check"][:1]
    first = next(event for event in fetch.of(FileProgress) if event.stage == "fetch")
    assert check.done_bytes == first.done_bytes == 100_000
    assert first.bytes == len(DATA)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "", "a\0b", "a\x1b[2Jb"], ids=repr
)
def test_a_name_that_leads_out_of_the_cache_is_refused(path):
    with pytest.raises(ValueError, match="name of a file"):
        RemoteFile(repo="own/one", commit=COMMIT, path=path, size=1, digest=COMMIT)


def test_a_program_that_fetches_the_same_file_is_waited_for(fetch):
    lock = fetch.cache.lock("own/one", digest_of(DATA))
    lock.parent.mkdir(parents=True)
    thread = threading.Thread(target=fetch)
    # As huggingface_hub holds it while it fetches.
    with WeakFileLock(lock):
        thread.start()
        deadline = time.monotonic() + 10
        while not fetch.of(Notice) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not fetch.cache.blob(file_of()).exists()
    thread.join(10)
    assert fetch.cache.blob(file_of()).read_bytes() == DATA
    [notice] = fetch.of(Notice)
    assert notice.message == "waiting for another program that fetches big.bin"


def test_the_same_contents_of_another_repository_are_not_fetched_again(fetch, hub):
    fetch()
    twin = RemoteFile(
        repo="own/two", commit=COMMIT, path="b.bin", size=len(DATA), digest=digest_of(DATA)
    )
    before = len(hub.log)
    assert fetch(twin) == DATA
    assert len(hub.log) == before


def test_damaged_contents_of_another_repository_are_not_taken(fetch, hub):
    fetch()
    fetch.blob.write_bytes(DATA[:-1] + b"?")
    hub.repos["own/two"] = {"b.bin": DATA}
    twin = RemoteFile(
        repo="own/two", commit=COMMIT, path="b.bin", size=len(DATA), digest=digest_of(DATA)
    )
    assert fetch(twin) == DATA
    assert fetch.cache.blob(file_of()).read_bytes() != DATA
