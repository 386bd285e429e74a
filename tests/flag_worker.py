"""Runs command lines of `osp` where torch, numpy and their like cannot be imported.

A program of its own, so that nothing has been imported before. A recorded runner stands in for the
one that loads models. Each line of stdin is a case, a JSON object with `argv`, and perhaps `env`,
`config` (the contents of `osp.toml`) and `stdin`; each line of stdout answers it.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import types
from pathlib import Path

import typer

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy"}


class HeavyImport(BaseException):
    """Not an `ImportError`, which somebody might catch; and not an error that `main` knows."""


class Guard:
    """Refuses the imports that a refusal must not wait for."""

    def find_spec(self, name, path=None, target=None):
        """Raise for what is heavy, leave the rest to others."""
        if name.partition(".")[0] in HEAVY:
            raise HeavyImport(name)


def load_conftest():
    """The recorded runtime of the command's own tests."""
    path = Path(__file__).parent / "cli" / "conftest.py"
    spec = importlib.util.spec_from_file_location("recorded", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["recorded"] = module
    spec.loader.exec_module(module)
    return module


def lora_file(width: int) -> bytes:
    """A LoRA of rank 1 for one layer."""
    number = 4 * width
    layer = "transformer.blocks.0.attn1.to_q"
    table = {
        f"{layer}.lora_A.weight": {"shape": [1, width], "data_offsets": [0, number]},
        f"{layer}.lora_B.weight": {"shape": [width, 1], "data_offsets": [number, 2 * number]},
    }
    head = json.dumps({name: {"dtype": "F32", **entry} for name, entry in table.items()}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(2 * number)


def furnish(folder: Path) -> None:
    """The files that the command lines speak of, good and bad."""
    from PIL import Image

    from osp_cli.dials import Seeds, Size
    from osp_cli.settings import Source, settle_generate

    Image.effect_noise((64, 48), 80).convert("RGB").save(folder / "cat.png")
    Image.new("L", (32, 32), 99).save(folder / "dog.jpg")
    recipe = settle_generate(
        Source(image=Path("cat.png")), prompt="old", size=Size(448, 256), seed=Seeds([5])
    ).request.recipe()
    head = json.dumps({"__metadata__": {"recipe": json.dumps(recipe)}}).encode()
    files = {
        "bad.png": b"no picture",
        "exists.mp4": b"mine",
        "prompt.txt": b"snow falls\n",
        "good.toml": b'steps = 3\n[generate]\nstyle = "ink"\n',
        "bad.toml": b"stepz = 3\n",
        "good.json": json.dumps(recipe).encode(),
        "bad.json": json.dumps({**recipe, "seed": "x"}).encode(),
        "old.latents.safetensors": struct.pack("<Q", len(head)) + head,
        "bad.latents.safetensors": b"12345678901234567890",
        # Of the built-in model's width, and of another's.
        "good.safetensors": lora_file(544),
        "other.safetensors": lora_file(64),
        "bad.safetensors": lora_file(544)[:-1],
        "x.pt": b"pickled",
        "good.txt": b"a cat\na dog --style ink --seed 1-2\n",
        "mixed.txt": b"a cat\na dog --steps many\na cow --image none.png\n",
        "bad.txt": b"a --steps 0\nb --stile ink\n",
        "empty.txt": b"# nothing\n",
        "good.csv": b"prompt,seed\na,1\nb,2\n",
        "good.jsonl": b'{"prompt": "a", "seed": 1}\n{"prompt": "b", "style": null}\n',
        "bad.jsonl": b"[1]\n",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "videos").mkdir()


class Workplace:
    """Runs cases, each in a copy of the furnished folder."""

    def __init__(self, root: Path) -> None:
        recorded = load_conftest()
        self._modules, self._requests = recorded.recorded_runtime(recorded.story)
        sys.modules.update(self._modules)
        # The videos that a page would be made of are none.
        pages = types.ModuleType("osp_cli.runtime.sheets")
        pages.with_sheets = lambda events, sheets, waiting: events
        sys.modules[pages.__name__] = pages
        sys.modules["osp_cli.runtime.batch"] = recorded.true_batch()
        # Typer would build the same parser for every case, which is most of the time.
        app = importlib.import_module("osp_cli.cli.app")
        app.app = typer.main.get_command(app.app)
        self._root = root
        self._template = root / "template"
        self._template.mkdir()
        furnish(self._template)
        home = root / "home"
        os.environ |= {"OSP_HOME": str(home), "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        from osp_cli.registry import find_model

        for part in find_model("flashi2v-1.3b").parts:
            (home / "models" / "flashi2v-1.3b" / part).mkdir(parents=True)
        self._environ = {
            name: value for name, value in os.environ.items() if not name.startswith("OSP_")
        } | {"OSP_HOME": str(home)}

    def run(self, case: dict) -> dict:
        """One command line: its exit code, both streams, the runs and the files it left."""
        from osp_cli.cli.app import main

        folder = self._root / "case"
        shutil.copytree(self._template, folder)
        if case.get("config") is not None:
            (folder / "osp.toml").write_text(case["config"], encoding="utf-8")
        before = {path.name for path in folder.iterdir()}
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(self._environ | case.get("env", {}))
        self._requests.clear()
        former = sys.stdin, sys.stdout, sys.stderr
        sys.stdin = io.TextIOWrapper(io.BytesIO(case.get("stdin", "").encode()))
        out, err = io.BytesIO(), io.BytesIO()
        streams = (
            io.TextIOWrapper(out, "utf-8", "surrogateescape", write_through=True),
            io.TextIOWrapper(err, "utf-8", "backslashreplace", write_through=True),
        )
        sys.stdout, sys.stderr = streams
        try:
            code: object = main(case["argv"])
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
            code = repr(error)
        finally:
            sys.stdin, sys.stdout, sys.stderr = former
            for stream in streams:
                stream.detach()
            os.chdir(self._root)
        left = sorted({path.name for path in folder.iterdir()} - before)
        mine = (folder / "exists.mp4").read_bytes()
        shutil.rmtree(folder)
        return {
            "code": code,
            "out": out.getvalue().decode(errors="replace"),
            "err": err.getvalue().decode(errors="replace"),
            "runs": len(self._requests),
            "left": left,
            "overwritten": mine != b"mine",
            "heavy": sorted(HEAVY & sys.modules.keys()),
        }


def serve() -> None:
    """Answer cases until stdin ends."""
    sys.meta_path.insert(0, Guard())
    answers = sys.stdout
    with tempfile.TemporaryDirectory() as root:
        workplace = Workplace(Path(root))
        for line in sys.stdin:
            answers.write(json.dumps(workplace.run(json.loads(line))) + "\n")
            answers.flush()
        os.chdir("/")


if __name__ == "__main__":
    serve()
