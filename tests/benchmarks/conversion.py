"""What converting a large checkpoint takes: time, and memory that is the process's own.

    python tests/benchmarks/conversion.py --gigabytes 3 --folder /tmp

writes a `.pth` of random weights under original names, of about that size in single precision,
converts it to bfloat16 in a process of its own, and prints one line of JSON. Everything is deleted
afterwards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WIDTH, FFN, TEXT = 1536, 8960, 4096
BLOCK = {
    "modulation": (1, 6, WIDTH), "norm3.weight": (WIDTH,), "norm3.bias": (WIDTH,),
    "ffn.0.weight": (FFN, WIDTH), "ffn.0.bias": (FFN,), "ffn.2.weight": (WIDTH, FFN),
    "ffn.2.bias": (WIDTH,),
    **{f"{attention}.{name}.{kind}": (WIDTH, WIDTH) if kind == "weight" else (WIDTH,)
       for attention in ("self_attn", "cross_attn") for name in "qkvo"
       for kind in ("weight", "bias")},
    **{f"{attention}.norm_{name}.weight": (WIDTH,)
       for attention in ("self_attn", "cross_attn") for name in "qk"},
}  # fmt: skip
OUTSIDE = {
    "patch_embedding.weight": (WIDTH, 16, 1, 2, 2), "patch_embedding.bias": (WIDTH,),
    "text_embedding.0.weight": (WIDTH, TEXT), "text_embedding.0.bias": (WIDTH,),
    "text_embedding.2.weight": (WIDTH, WIDTH), "text_embedding.2.bias": (WIDTH,),
    "time_embedding.0.weight": (WIDTH, 256), "time_embedding.0.bias": (WIDTH,),
    "time_embedding.2.weight": (WIDTH, WIDTH), "time_embedding.2.bias": (WIDTH,),
    "time_projection.1.weight": (6 * WIDTH, WIDTH), "time_projection.1.bias": (6 * WIDTH,),
    "head.head.weight": (64, WIDTH), "head.head.bias": (64,), "head.modulation": (1, 2, WIDTH),
    "fourier_embedding.0.weight": (WIDTH, 16, 1, 2, 2), "fourier_embedding.0.bias": (WIDTH,),
    "fourier_embedding.1.weight": (WIDTH, WIDTH, 1, 1, 1), "fourier_embedding.1.bias": (WIDTH,),
    "learnable_proj.proj.0.weight": (64, 16, 1, 3, 3), "learnable_proj.proj.0.bias": (64,),
    "learnable_proj.proj.2.weight": (16, 64, 1, 3, 3), "learnable_proj.proj.2.bias": (16,),
}  # fmt: skip


def write(path: Path, gigabytes: float) -> None:
    """A transformer as wide as the released small one, with as many layers as make that size."""
    import torch

    per_block = 4 * sum(torch.Size(shape).numel() for shape in BLOCK.values())
    outside = 4 * sum(torch.Size(shape).numel() for shape in OUTSIDE.values())
    layers = max(round((gigabytes * 1e9 - outside) / per_block), 1)
    state = {name: torch.randn(shape) for name, shape in OUTSIDE.items()}
    for layer in range(layers):
        for name, shape in BLOCK.items():
            state[f"blocks.{layer}.{name}"] = torch.randn(shape)
    torch.save(state, path)


def convert(source: Path, target: Path) -> None:
    """Convert and print what it took; in a process of its own."""
    from osp_cli.models import conversion
    from osp_cli.models.kinds import model_class
    from osp_cli.models.layouts import describe

    model_class("flash-i2v")  # imports are no part of it
    started = time.perf_counter()
    before = anonymous()
    peak, over = [before], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    (found,) = describe(source)
    described = time.perf_counter() - started
    events = list(conversion.convert(found, target, dtype="bfloat16"))
    seconds = time.perf_counter() - started - described
    over.set()
    watcher.join()
    size = source.stat().st_size
    figures = {
        "source_bytes": size,
        "tensors": found.num_tensors,
        "describe_seconds": round(described, 2),
        "convert_seconds": round(seconds, 2),
        "read_bytes_per_second": round(size / seconds),
        "shards": len(events),
        "written_bytes": sum(path.stat().st_size for path in target.iterdir()),
        "anonymous_bytes_before": before,
        "anonymous_bytes_above": peak[0] - before,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def anonymous() -> int:
    """Bytes of this process that are neither a file's nor shared."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, default=None, help="where there is room for twice")
    parser.add_argument("--step", choices=("write", "convert"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "write":
        return write(args.folder / "model.pth", args.gigabytes)
    if args.step == "convert":
        return convert(args.folder / "model.pth", args.folder / "transformer")
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        for step in ("write", "convert"):
            command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
            subprocess.run([*command, "--gigabytes", str(args.gigabytes)], check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
