"""Which servers are asked, with whose token, and what is told when they refuse."""

from __future__ import annotations

import email.utils
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import COMMIT

from osp_cli.errors import InvalidRequestError, WeightsMissingError
from osp_cli.hub import client, listings
from osp_cli.hub.cache import cache_root
from osp_cli.hub.client import Endpoint, Hub, endpoints, is_offline
from osp_cli.hub.troubles import LOGIN_HINT


def listing(hub, repo="own/wee", revision="main", *, said=None, servers=None, **options):
    say = (said if said is not None else []).append
    asked = servers or [Endpoint(hub.url)]
    return Hub(asked, say=say).listing(repo, revision, **options)


def refusal(hub, *args, kind=WeightsMissingError, **options):
    with pytest.raises(kind) as caught:
        listing(hub, *args, **options)
    return caught.value


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# --- The list of files ------------------------------------------------------------------------


def test_sizes_and_hashes_are_read(fake_hub):
    found = listing(fake_hub)
    assert found.commit == COMMIT
    files = {file.path: file for file in found.files}
    assert files.keys() == fake_hub.repos["own/wee"].keys()
    for path, data in fake_hub.repos["own/wee"].items():
        file = files[path]
        hasher = file.hasher()
        hasher.update(data)
        assert (file.size, file.digest) == (len(data), hasher.hexdigest())
        assert (file.sha256 is not None) == (len(data) >= 10_000)


def test_a_remembered_list_is_the_same(fake_hub):
    found = listing(fake_hub)
    assert listings.recall("own/wee", "main", COMMIT) is None
    listings.remember(found)
    assert listings.recall("own/wee", "main", COMMIT) == found


def test_patterns_reach_into_folders(fake_hub):
    found = listing(fake_hub)
    assert {file.path for file in found.matching(["vae/"])} == {
        "vae/config.json",
        "vae/model.safetensors",
    }
    assert len(found.matching(["*.safetensors", "README.md"])) == 4


@pytest.mark.parametrize(
    ("status", "headers", "sentence", "hint"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "own/wee is gated", "huggingface.co/own/wee"),
        (403, {"X-Error-Code": "GatedRepo"}, "no access yet (403)", LOGIN_HINT),
        (401, {"X-Error-Code": "RepoNotFound"}, "has no repository own/wee", LOGIN_HINT),
        (404, {}, "has no repository own/wee", LOGIN_HINT),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "token", "login"),
        (403, {}, "refuses own/wee (403)", LOGIN_HINT),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no revision 'main'", None),
    ],
)
def test_refusals_are_told_apart(fake_hub, status, headers, sentence, hint):
    fake_hub.faults.list_status = [(status, headers)]
    error = refusal(fake_hub)
    assert sentence in error.message
    assert error.hint == hint if hint is None else hint in error.hint
    assert error.exit_code == 3
    assert not fake_hub.faults.list_status


def test_a_revision_of_the_users_own_is_a_wrong_flag(fake_hub):
    error = refusal(fake_hub, revision="nonesuch", kind=InvalidRequestError, asked_revision=True)
    assert "no revision 'nonesuch'" in error.message


def test_a_busy_hub_is_asked_again(fake_hub):
    fake_hub.faults.list_status = [(502, {}), (429, {"Retry-After": "0"})]
    assert listing(fake_hub).commit == COMMIT


def test_a_hub_that_stays_busy_is_told(fake_hub):
    fake_hub.faults.list_status = [(500, {})] * 9
    assert "problem of its own (500)" in refusal(fake_hub).message
    assert len(fake_hub.faults.list_status) == 9 - client.LISTING_TRIES


def test_a_date_is_a_time_to_wait_until(fake_hub):
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    fake_hub.faults.list_status = [(503, {"Retry-After": date})]
    assert "(503)" in refusal(fake_hub).message


def test_a_long_wait_is_announced(fake_hub, monkeypatch):
    monkeypatch.setattr("threading.Event.wait", lambda self, seconds=None: False)
    fake_hub.faults.list_status = [(429, {"Retry-After": "40"})]
    said = []
    assert listing(fake_hub, said=said).commit == COMMIT
    [sentence] = said
    assert "next try in 40 s" in sentence


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://127.0.0.1:{port}", "127.0.0.1:{port} does not answer"),
        ("http://no-such-host.invalid", "no-such-host.invalid cannot be found"),
    ],
)
def test_no_network_is_told_with_the_servers_name(fake_hub, address, sentence, monkeypatch):
    def resolve(host, *args, **options):
        if "invalid" in str(host):
            raise socket.gaierror(-2, "Name or service not known")
        return genuine(host, *args, **options)

    genuine = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    port = free_port()
    error = refusal(fake_hub, servers=[Endpoint(address.format(port=port))])
    assert sentence.format(port=port) in error.message
    assert "--mirror" in error.hint


def test_the_next_server_answers_for_one_that_is_gone(fake_hub):
    servers = [Endpoint(f"http://127.0.0.1:{free_port()}"), Endpoint(fake_hub.url)]
    assert listing(fake_hub, servers=servers).commit == COMMIT


def test_a_page_of_a_captive_portal_is_no_hub(fake_hub, monkeypatch):
    def answer(ask, name):
        ask.send_response(200)
        ask.send_header("Content-Length", "6")
        ask.end_headers()
        ask.wfile.write(b"<html>")

    monkeypatch.setattr(fake_hub, "_answer", answer)
    assert "does not answer like a hub" in refusal(fake_hub).message


def test_a_list_with_names_that_lead_out_of_the_cache_is_refused(fake_hub):
    fake_hub.repos["own/wee"]["../../.bashrc"] = b"evil"
    assert "does not answer like a hub" in refusal(fake_hub).message


# --- Servers, tokens, variables ---------------------------------------------------------------


def test_mirrors_come_first_and_get_no_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    found = endpoints(["https://mirror.example/", "https://huggingface.co"])
    assert found == (
        Endpoint("https://mirror.example"),
        Endpoint("https://huggingface.co", "hf_x"),
    )


def test_the_token_opens_lists_too(fake_hub):
    listing(fake_hub, servers=[Endpoint(fake_hub.url, "hf_x")])
    listing(fake_hub)
    with_token, without = fake_hub.asked("/api/models/own/wee")
    assert with_token["authorization"] == "Bearer hf_x"
    assert "authorization" not in without


def test_the_variable_names_the_hub(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert endpoints() == (Endpoint("https://hub.example", "hf_x"),)


@pytest.mark.parametrize("mirror", ["mirror.example", "ftp://x", "https://", ""])
def test_a_mirror_that_is_no_address_is_refused(mirror):
    with pytest.raises(InvalidRequestError, match="--mirror must be an address"):
        endpoints([mirror])


@pytest.mark.parametrize("name", ["OSP_OFFLINE", "HF_HUB_OFFLINE"])
def test_variables_forbid_the_network(monkeypatch, name):
    assert not is_offline()
    assert is_offline(asked=True)
    monkeypatch.setenv(name, "1")
    assert is_offline()
    monkeypatch.setenv(name, "0")
    assert not is_offline()


PROBE = """
from huggingface_hub import constants
from osp_cli.hub.cache import cache_root
from osp_cli.hub.client import endpoints
print(cache_root() == __import__("pathlib").Path(constants.HF_HUB_CACHE))
print(endpoints()[0].token)
"""


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "/x/hf"},
        {"HF_HUB_CACHE": "$HOME/c"},
        {"HUGGINGFACE_HUB_CACHE": "~/old"},
        {"XDG_CACHE_HOME": "/x/cache"},
    ],
    ids=lambda value: "-".join(value) or "none",
)
def test_cache_and_token_are_found_where_huggingface_hub_has_them(tmp_path, variables):
    token = tmp_path / "token"
    token.write_text("hf_from_file\n")
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_TOKEN_PATH": str(token),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "hf_from_file"]


def test_the_cache_is_this_tests_own(hub_home):
    assert cache_root() == hub_home / "hf" / "hub"
