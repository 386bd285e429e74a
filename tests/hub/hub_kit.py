"""Cards whose parts a fake hub has, and the command with them in a process of its own."""

from __future__ import annotations

import os
import random
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from osp_cli import registry
from osp_cli.events import Event, Notice

SCRIPT = Path(__file__)


def contents(seed: int, count: int) -> bytes:
    """Bytes that do not repeat, the same for the same seed."""
    return random.Random(seed).randbytes(count)


# Two repositories with a file in common, small files beside large ones.
SHARED_VAE = contents(3, 60_000)
REPOS = {
    "own/wee": {
        "README.md": b"# wee\n",
        "transformer/config.json": b'{"layers": 2}',
        "transformer/model-00001-of-00002.safetensors": contents(1, 300_000),
        "transformer/model-00002-of-00002.safetensors": contents(2, 200_001),
        "transformer/empty.txt": b"",
        "vae/config.json": b"{}",
        "vae/model.safetensors": SHARED_VAE,
    },
    "other/vae": {"config.json": b'{"latents": 16}', "vae.safetensors": SHARED_VAE},
}
WEE_FILES = {path: data for path, data in REPOS["own/wee"].items() if "/" in path}


def wee_specs() -> dict[str, registry.ModelSpec]:
    """`wee`, of one repository, and `wee-too`, whose VAE comes from another."""
    transformer = registry.Download(
        part="transformer",
        repo="own/wee",
        files=("transformer/*",),
        subfolder="transformer",
        bytes=500_014,
        checked=True,
    )
    vae = replace(transformer, part="vae", files=("vae/*",), subfolder="vae", bytes=60_002)
    wee = replace(
        registry.find_model("flashi2v-1.3b"),
        name="wee",
        title="Wee",
        source="own/wee",
        weights="wee",
        parts=("transformer", "vae"),
        downloads=(transformer, vae),
    )
    other = replace(vae, repo="other/vae", files=("*",), subfolder="", checked=False)
    return {
        "wee": wee,
        "wee-too": replace(wee, name="wee-too", weights="wee-too", downloads=(transformer, other)),
    }


def install(spec: registry.ModelSpec, sources: Mapping[str, Path]) -> Iterator[Event]:
    """Link every part; stands in for what tells layouts apart and converts."""
    place = spec.weights_places()[-1]
    for part, source in sources.items():
        folder = place / part
        folder.mkdir(parents=True, exist_ok=True)
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            if path.is_file():
                link = folder / path.name
                link.unlink(missing_ok=True)
                link.symlink_to(path.resolve())
    yield Notice(f"{spec.name} is placed")


def install_module() -> types.ModuleType:
    """A module in place of the one that looks into weights, which these are not."""
    module = types.ModuleType("osp_cli.hub.install")
    vars(module).update(install=install, install_local=lambda spec, path: iter(()))
    return module


def register() -> None:
    """Make the cards known, in a process of its own that never forgets it."""
    import osp_cli.hub

    specs = {**registry.model_specs(), **wee_specs()}
    registry.model_specs = lambda: specs
    sys.modules["osp_cli.hub.install"] = osp_cli.hub.install = install_module()


if __name__ == "__main__":
    from osp_cli.cli.app import main
    from osp_cli.hub import client

    register()
    client.FIRST_PAUSE_SECONDS = float(os.environ.get("FIRST_PAUSE", "0.01"))
    sys.exit(main(sys.argv[1:]))
