"""From the card to the installed model: plan, room, cache, locks, offline, and checking again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import hub_kit
import pytest
from fake_hub import COMMIT
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

from osp_cli import events, registry
from osp_cli.errors import (
    ChecksumError,
    InvalidRequestError,
    RuntimeFailureError,
    WeightsMissingError,
    WontFitError,
)
from osp_cli.hub import hashes, haul
from osp_cli.hub.cache import Cache
from osp_cli.hub.download import Way, download, plan
from osp_cli.hub.haul import Wish
from osp_cli.hub.verify import verify


def run(*names, wish=Wish(), way=Way()):  # noqa: B008 - frozen
    return list(download([registry.find_model(name) for name in names], wish, way))


def of(found, kind):
    return [event for event in found if isinstance(event, kind)]


def installed(spec):
    """The bytes of the installed parts by path."""
    place = spec.weights_dir()
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file()
    }


def wanted_files(hub):
    """Requests for files, not for lists."""
    return [path for server, method, path, _ in hub.log if "resolve" in path and method == "GET"]


# --- All of it --------------------------------------------------------------------------------


def test_a_model_is_fetched_checked_and_installed(wee, fake_hub):
    found = run("wee")
    assert installed(wee) == hub_kit.WEE_FILES
    [planned] = of(found, events.DownloadPlanned)
    total = sum(map(len, hub_kit.WEE_FILES.values()))
    assert (planned.num_files, planned.total_bytes) == (6, total)
    assert (planned.cached_bytes, planned.fetch_bytes) == (0, total)
    assert sum(event.bytes for event in of(found, events.FilePlanned)) == total
    assert len(of(found, events.FileFetched)) == 6
    [saved] = of(found, events.Saved)
    assert (saved.path, saved.bytes) == (wee.weights_dir(), total)
    assert isinstance(found[-1], events.Done)


def test_a_second_time_nothing_is_fetched(wee, fake_hub):
    run("wee")
    before = len(wanted_files(fake_hub))
    found = run("wee")
    assert len(wanted_files(fake_hub)) == before
    assert of(found, events.DownloadPlanned)[0].fetch_bytes == 0


def test_what_two_models_share_is_fetched_once(wee, fake_hub):
    run("wee", "wee-too")
    asked = [path for _, method, path, _ in fake_hub.log if "vae" in path and "?path" in path]
    assert len(asked) == 1
    too = installed(registry.find_model("wee-too"))
    assert too["vae/vae.safetensors"] == hub_kit.SHARED_VAE
    assert too["transformer/config.json"] == b'{"layers": 2}'


def test_a_part_gets_nothing_of_its_neighbours(wee, fake_hub, monkeypatch):
    # Both parts lie in the root of one repository.
    fake_hub.repos["own/wee"] = {"a.safetensors": b"a", "a2.safetensors": b"a2", "vae.pth": b"v"}
    base = wee.downloads[0]
    spec = replace(
        wee,
        downloads=(
            replace(base, files=("a*.safetensors",), subfolder=""),
            replace(base, part="vae", files=("*.pth",), subfolder=""),
        ),
    )
    monkeypatch.setitem(registry.model_specs(), "wee", spec)
    monkeypatch.setattr(registry, "model_specs", lambda: {"wee": spec})
    run("wee")
    assert installed(spec) == {
        "transformer/a.safetensors": b"a",
        "transformer/a2.safetensors": b"a2",
        "vae/vae.pth": b"v",
    }


def test_an_error_of_one_file_ends_all_and_keeps_the_rest(wee, fake_hub):
    fake_hub.faults.corrupt = 250_000
    with pytest.raises(ChecksumError, match="model-00001"):
        run("wee", way=Way(jobs=1))
    assert not wee.weights_places()[-1].exists()
    assert Cache().commit_of("own/wee", "main") is None
    fake_hub.faults.corrupt = None
    run("wee")
    assert installed(wee) == hub_kit.WEE_FILES


# --- The plan ---------------------------------------------------------------------------------


def test_a_plan_writes_nothing(wee, fake_hub, hub_home):
    before = sorted(hub_home.rglob("*"))
    found = list(plan([wee], Wish(), Way()))
    assert sorted(hub_home.rglob("*")) == before
    assert wanted_files(fake_hub) == []
    assert [type(event) for event in found] == [events.FilePlanned] * 6 + [events.DownloadPlanned]


def test_a_plan_counts_what_is_here(wee, fake_hub):
    run("wee", wish=Wish(include=("vae/*",)))
    [file] = [
        file
        for file in haul.gather([wee], Wish(), _hub(fake_hub), Cache()).contents
        if file.size == 300_000
    ]
    Cache().part(file).write_bytes(b"x" * 1000)
    planned = list(plan([wee], Wish(), Way()))[-1]
    assert planned.cached_bytes == 60_002
    assert planned.partial_bytes == 1000
    assert planned.fetch_bytes == planned.total_bytes - 61_002


def _hub(fake_hub):
    from osp_cli.hub.client import Endpoint, Hub

    return Hub([Endpoint(fake_hub.url)])


@pytest.mark.parametrize(("free", "place"), [("cache", "HF_HUB_CACHE"), ("home", "OSP_HOME")])
def test_too_small_a_disk_is_refused_before_the_first_byte(
    wee, fake_hub, hub_home, monkeypatch, free, place
):
    small = hub_home / ("hf" if free == "cache" else "home")
    monkeypatch.setattr(
        haul, "_free_bytes", lambda folder: 1000 if small in (folder, *folder.parents) else 10**15
    )
    monkeypatch.setattr(haul, "_convert_bytes", lambda _: 5 * 10**9)
    monkeypatch.setattr(haul, "_on_one_disk", lambda *_: False)
    with pytest.raises(WontFitError) as caught:
        run("wee")
    assert "1.0 kB are free" in caught.value.message
    assert place in caught.value.hint
    assert caught.value.exit_code == 4
    assert wanted_files(fake_hub) == []


def test_both_folders_on_one_disk_need_the_sum(wee, monkeypatch):
    planned = list(plan([wee], Wish(), Way()))[-1]
    both = replace(planned, fetch_bytes=3 * 10**9, convert_bytes=2 * 10**9)
    haul.check_room(replace(both, cache_free_bytes=6 * 10**9, home_free_bytes=6 * 10**9))
    with pytest.raises(WontFitError, match=r"needs 5.1 GB .* 4.0 GB are free"):
        haul.check_room(replace(both, cache_free_bytes=4 * 10**9, home_free_bytes=4 * 10**9))


def test_a_full_disk_is_told(wee, fake_hub, monkeypatch):
    import errno

    from osp_cli.hub.transfer import Part

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Part, "append", full)
    with pytest.raises(WontFitError, match="no space left in"):
        run("wee")


# --- Wishes -----------------------------------------------------------------------------------


def test_patterns_leave_files_out_and_the_model_uninstalled(wee, fake_hub):
    found = run("wee", wish=Wish(include=("*.json", "vae/*"), exclude=("vae/model*",)))
    assert {event.path for event in of(found, events.FileFetched)} == {
        "transformer/config.json",
        "vae/config.json",
    }
    assert wee.find_weights() is None
    assert any("not installed" in event.message for event in of(found, events.Notice))


def test_patterns_that_leave_nothing_are_refused(wee):
    with pytest.raises(InvalidRequestError, match="leave no file"):
        run("wee", wish=Wish(include=("*.gguf",)))


def test_a_revision_is_the_model_repositorys_own(wee, fake_hub):
    run("wee-too", wish=Wish(revision=COMMIT))
    cache = Cache()
    assert not (cache.repo("own/wee") / "refs").exists()
    assert (cache.repo("other/vae") / "refs" / "main").read_text() == COMMIT
    with pytest.raises(InvalidRequestError, match="no revision 'nonesuch'"):
        run("wee-too", wish=Wish(revision="nonesuch"))


def test_files_that_the_hub_does_not_have_are_told(wee, fake_hub):
    del fake_hub.repos["own/wee"]["transformer/model-00002-of-00002.safetensors"]
    with pytest.raises(WeightsMissingError, match=r"lacks the file .*00002-of-00002"):
        run("wee")
    for path in ("vae/config.json", "vae/model.safetensors"):
        del fake_hub.repos["own/wee"][path]
    fake_hub.repos["own/wee"]["transformer/model-00002-of-00002.safetensors"] = b""
    with pytest.raises(WeightsMissingError, match=r"has no file vae/\*"):
        run("wee")


def test_patterns_may_be_alternatives_and_names_may_not(wee, fake_hub, monkeypatch):
    base = wee.downloads[0]

    def with_files(*files):
        spec = replace(wee, downloads=(replace(base, files=files), wee.downloads[1]))
        monkeypatch.setattr(registry, "model_specs", lambda: {"wee": spec})

    with_files("transformer/*.gguf", "transformer/*")
    run("wee")
    with_files("transformer/none.json", "transformer/*")
    with pytest.raises(WeightsMissingError, match=r"has no file transformer/none.json at main"):
        run("wee")
    with_files("*.gguf", "*.pth")
    with pytest.raises(WeightsMissingError, match=r"has no file \*.gguf or \*.pth"):
        run("wee")


# --- Offline ----------------------------------------------------------------------------------


def test_offline_installs_what_is_in_the_cache(wee, fake_hub):
    run("wee", wish=Wish(include=("*",)))
    asked = len(fake_hub.log)
    run("wee", way=Way(offline=True))
    assert len(fake_hub.log) == asked
    assert installed(wee) == hub_kit.WEE_FILES


@pytest.mark.parametrize("fetched", [(), ("vae/*",)], ids=["nothing", "a part"])
def test_offline_refuses_what_is_not_in_the_cache(wee, fake_hub, fetched):
    if fetched:
        run("wee", wish=Wish(include=fetched))
    asked = len(fake_hub.log)
    with pytest.raises(WeightsMissingError, match="nothing is fetched offline") as caught:
        run("wee", way=Way(offline=True))
    assert "--offline" in caught.value.hint
    assert len(fake_hub.log) == asked


def test_without_a_network_the_cache_will_do_and_that_is_said(wee, fake_hub):
    run("wee")
    fake_hub.close()
    found = run("wee")
    assert any(
        "what is in the cache is used" in event.message for event in of(found, events.Notice)
    )
    assert installed(wee) == hub_kit.WEE_FILES


def test_without_a_network_a_part_will_not_do(wee, fake_hub):
    run("wee", wish=Wish(include=("vae/*",)))
    fake_hub.close()
    with pytest.raises(WeightsMissingError, match=r"does not answer|cut the"):
        run("wee")


# --- Together with huggingface_hub ------------------------------------------------------------


@pytest.mark.parametrize("large", [True, False])
def test_what_huggingface_hub_fetched_is_used(wee, fake_hub, large):
    path = "transformer/model-00001-of-00002.safetensors" if large else "vae/config.json"
    hf_hub_download("own/wee", path, endpoint=fake_hub.url, cache_dir=Cache().root)
    before = len(fake_hub.asked(path))
    found = run("wee")
    assert len(fake_hub.asked(path)) == before
    assert [event.path for event in of(found, events.FileFetched) if event.cached] == [path]
    assert installed(wee) == hub_kit.WEE_FILES


def test_a_snapshot_of_huggingface_hub_serves_offline(wee, fake_hub):
    snapshot_download("own/wee", endpoint=fake_hub.url, cache_dir=Cache().root)
    run("wee", way=Way(offline=True))
    assert installed(wee) == hub_kit.WEE_FILES


def test_huggingface_hub_sees_what_we_fetched(wee, fake_hub):
    run("wee")
    asked = len(fake_hub.log)
    folder = Path(snapshot_download("own/wee", cache_dir=Cache().root, local_files_only=True))
    files = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    assert files == hub_kit.WEE_FILES
    # Asked anew, it fetches what we left out and nothing else.
    snapshot_download("own/wee", endpoint=fake_hub.url, cache_dir=Cache().root)
    fetched = [
        path for _, method, path, _ in fake_hub.log[asked:] if "resolve" in path and method == "GET"
    ]
    assert len(fetched) == 1
    assert fetched[0].endswith("README.md")
    found = scan_cache_dir(Cache().root)
    assert not found.warnings
    assert {repo.repo_id for repo in found.repos} == {"own/wee"}


def test_without_links_the_files_lie_in_the_snapshot(wee, fake_hub, monkeypatch):
    import os

    def refuse(*_, **__):
        raise OSError("no links here")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", refuse)
        patched.setattr(Path, "symlink_to", refuse)
        patched.setattr(hub_kit, "install", lambda *_: iter(()))
        patched.setattr(
            sys.modules["osp_cli.hub.install"], "install", lambda spec, sources: iter(())
        )
        patched.setattr(registry.ModelSpec, "weights_dir", lambda _: Cache().root)
        run("wee")
        before = len(wanted_files(fake_hub))
        run("wee")
    assert len(wanted_files(fake_hub)) == before
    folder = Cache().snapshot("own/wee", COMMIT)
    assert (folder / "vae" / "model.safetensors").read_bytes() == hub_kit.SHARED_VAE
    assert not any(path.is_symlink() for path in folder.rglob("*"))


# --- Two at once ------------------------------------------------------------------------------


def test_a_second_process_waits_and_says_for_whom(wee, fake_hub):
    fake_hub.faults.bytes_per_second = 400_000
    other = subprocess.Popen(
        [sys.executable, str(hub_kit.SCRIPT), "download", "wee", "-q"],
        env={**_environment(fake_hub)},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not wanted_files(fake_hub) and time.monotonic() < deadline:
        time.sleep(0.02)
    found = run("wee")
    assert other.wait(20) == 0
    notices = [event.message for event in of(found, events.Notice)]
    assert (
        f"waiting for another osp (process {other.pid}), which fetches own/wee just now" in notices
    )
    assert all(event.cached for event in of(found, events.FileFetched))


def _environment(hub):
    import os

    root = str(Path(hub_kit.__file__).parents[2])
    return {**os.environ, "HF_ENDPOINT": hub.url, "PYTHONPATH": root}


def test_two_threads_of_one_cache_get_the_same_bytes(wee, fake_hub):
    errors = []

    def work(name):
        try:
            run(name)
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("wee", "wee-too")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert installed(wee) == hub_kit.WEE_FILES


def test_closing_the_run_stops_its_threads(wee, fake_hub):
    fake_hub.faults.bytes_per_second = 100_000

    def names():
        """What runs here, but for the servers' threads."""
        return {thread.name.partition("(")[2].rstrip(")") for thread in threading.enumerate()}

    events_ = download([wee], Wish(), Way())
    for event in events_:
        if isinstance(event, events.FileProgress):
            break
    assert "work" in names()
    started = time.monotonic()
    events_.close()
    assert time.monotonic() - started < 5
    deadline = time.monotonic() + 5
    while names() & {"work"} and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "work" not in names()


# --- Checking again ---------------------------------------------------------------------------


def check(spec):
    return list(verify([spec], Wish()))


def test_all_is_as_published(wee, fake_hub):
    run("wee")
    fake_hub.close()
    found = check(wee)
    assert [event.problem for event in of(found, events.FileVerified)] == [None] * 6
    assert found[-1] == events.Verified(6, 560_016)


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_damage_is_named_and_only_that_file_fetched_again(wee, fake_hub, monkeypatch, how):
    monkeypatch.setattr(hashes, "_REMEMBERED_BYTES", 1000)
    run("wee")
    path = wee.weights_dir() / "vae" / "model.safetensors"
    blob = path.resolve()
    stat = blob.stat()
    if how == "gone":
        blob.unlink()
    else:
        # In place, with size and time as before: only reading it can tell.
        with blob.open("r+b") as file:
            file.seek(1234)
            file.write(b"????")
            file.truncate(stat.st_size if how == "changed" else 2000)
        import os

        os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ChecksumError) as caught:
        check(wee)
    assert "vae/model.safetensors" in caught.value.message
    assert "osp download wee" in caught.value.hint
    before = len(wanted_files(fake_hub))
    run("wee")
    [again] = wanted_files(fake_hub)[before:]
    assert "vae/model.safetensors" in again
    assert installed(wee) == hub_kit.WEE_FILES
    check(wee)


def test_what_huggingface_hub_fetched_is_checked_by_the_names_of_its_blobs(wee, fake_hub):
    snapshot_download("own/wee", endpoint=fake_hub.url, cache_dir=Cache().root)
    check(wee)
    blob = (Cache().snapshot("own/wee", COMMIT) / "vae/model.safetensors").resolve()
    blob.write_bytes(b"x" * 60_000)
    with pytest.raises(ChecksumError, match=r"vae/model.safetensors has the hash"):
        check(wee)


def test_a_revision_of_ones_own_is_remembered(wee, fake_hub):
    run("wee", wish=Wish(revision=COMMIT))
    assert Cache().commit_of("own/wee", "main") is None
    check(wee)


def noted(spec, name, data):
    """Have the installation of `spec` hold a file of its own, as a conversion writes it."""
    import hashlib
    import json

    place = spec.weights_dir()
    (place / name).write_bytes(data)
    part, _, file = name.partition("/")
    files = {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    record = {"model": spec.name, "parts": {part: {"files": files}}}
    (place / "osp-install.json").write_text(json.dumps(record))


def test_what_was_converted_is_checked_and_made_anew(wee, fake_hub, monkeypatch):
    run("wee")
    noted(wee, "transformer/converted.safetensors", b"converted")
    [own] = [event for event in of(check(wee), events.FileVerified) if event.repo == "wee"]
    assert own.problem is None
    (wee.weights_dir() / "transformer" / "converted.safetensors").write_bytes(b"CONVERTED")
    with pytest.raises(ChecksumError, match=r"transformer/converted.safetensors has the hash"):
        check(wee)
    before = len(wanted_files(fake_hub))
    assert any("is placed" in event.message for event in of(run("wee"), events.Notice))
    assert len(wanted_files(fake_hub)) == before


def test_what_was_installed_from_elsewhere_is_checked_too(wee):
    (wee.weights_places()[-1] / "transformer").mkdir(parents=True)
    (wee.weights_places()[-1] / "vae").mkdir()
    noted(wee, "vae/model.safetensors", b"vae")
    assert [event.path for event in of(check(wee), events.FileVerified)] == [
        "vae/model.safetensors"
    ]


def test_what_is_installed_from_these_files_is_not_installed_again(wee, fake_hub):
    run("wee")
    assert not of(run("wee"), events.Notice)
    assert of(run("wee", way=Way(again=True)), events.Notice)
    # Another commit, the same files: a model is what its record says.
    fake_hub.commit = "f" * 40
    assert of(run("wee"), events.Notice)


def test_a_model_that_is_not_here_cannot_be_checked(wee):
    with pytest.raises(WeightsMissingError, match="nothing of wee is here to check") as caught:
        check(wee)
    assert caught.value.hint == "osp download wee"
    for part in wee.parts:
        (wee.weights_places()[-1] / part).mkdir(parents=True)
    with pytest.raises(WeightsMissingError, match="nobody noted what to compare it with"):
        check(wee)


def test_an_unusable_cache_is_told(wee, hub_home):
    (hub_home / "hf").mkdir()
    (hub_home / "hf" / "hub").write_text("a file")
    with pytest.raises(RuntimeFailureError, match="cannot be used"):
        run("wee")
