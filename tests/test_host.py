"""Memory that may be taken: what is free, within what containers are granted and have used."""

from __future__ import annotations

import pytest

from osp_cli import host

GB = 10**9


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Lays control groups and free memory."""

    def lay(free: int | None, files: dict[str, str], own: str = "0::/\n") -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        listing = tmp_path / "own"
        listing.write_text(own)
        monkeypatch.setattr(host, "_CGROUPS", tmp_path)
        monkeypatch.setattr(host, "_OWN_CGROUPS", listing)
        monkeypatch.setattr(host, "free_memory", lambda: free)

    return lay


def test_without_limits_it_is_what_is_free(groups):
    groups(8 * GB, {"memory.max": "max\n"})
    assert host.usable_memory() == 8 * GB


def test_a_limit_less_what_is_used_but_for_files_in_memory(groups):
    stat = f"anon {GB}\nactive_file {GB}\ninactive_file {2 * GB}\n"
    groups(
        30 * GB,
        {"memory.max": f"{10 * GB}", "memory.current": f"{5 * GB}\n", "memory.stat": stat},
    )
    # 5 are used, of which 3 would be given back.
    assert host.usable_memory() == 8 * GB


def test_the_tightest_group_around_decides(groups):
    groups(
        30 * GB,
        {
            "memory.max": f"{20 * GB}",
            "memory.current": "0",
            "a/memory.max": f"{6 * GB}",
            "a/memory.current": f"{GB}",
            "a/b/memory.max": "max",
        },
        own="0::/a/b\n",
    )
    assert host.usable_memory() == 5 * GB


def test_a_group_over_its_limit_has_nothing_left(groups):
    groups(30 * GB, {"memory.max": f"{GB}", "memory.current": f"{2 * GB}"})
    assert host.usable_memory() == 0


def test_older_groups_tell_in_other_words(groups):
    groups(
        30 * GB,
        {"memory/memory.limit_in_bytes": f"{4 * GB}", "memory/memory.usage_in_bytes": f"{GB}"},
    )
    assert host.usable_memory() == 3 * GB


def test_a_silent_system_is_no_lack(groups, monkeypatch):
    groups(None, {})
    monkeypatch.setattr(host, "total_memory", lambda: None)
    assert host.usable_memory() is None
    monkeypatch.setattr(host, "total_memory", lambda: 16 * GB)
    assert host.usable_memory() == 16 * GB
