"""Forks processes that train together, so that torch is imported once for all of them.

A program of its own, which never computes anything itself: what a process has once computed with
does not survive a fork. Each line of stdin is a job, a JSON object `{work, world, arguments}`;
the answers on stdout are the list of pids, and then that of exit codes, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from osp_cli.stopping import StopSignal
from osp_cli.training.distributed import (
    DataGroup,
    enable_context_parallel,
    join_group,
    leave_group,
    shard,
)
from osp_cli.training.order import SampleOrder, share
from osp_cli.training.trainer import LoopSettings, Trainer, step_generator

SETTINGS = LoopSettings(steps=12, warmup=3, save_every=4, weight_decay=0.01)
# The gradients of the small transformer are about 0.01 long: every step is clipped.
WAN_SETTINGS = LoopSettings(
    steps=5, learning_rate=1e-2, warmup=2, lr_schedule="constant", betas=(0.9, 0.999), eps=1e-10,
    weight_decay=0.03, max_grad_norm=0.005, ema=0.9, save_every=2,
)  # fmt: skip
WINDOWS = 5  # of two buckets
BATCH = 3


class Net(nn.Module):
    """A matrix for Muon, vectors for AdamW, and a layer that is not trained."""

    def __init__(self, hidden=6):
        super().__init__()
        self.into = nn.Linear(4, hidden)
        self.out = nn.Linear(hidden, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.out(torch.tanh(self.into(x))))


def new_net():
    torch.manual_seed(0)
    return Net()


def is_matrix(name, parameter):
    return parameter.ndim == 2


def loss_of(net):
    """Randomness of a step from its number alone, as a trainer's objective must have it."""

    def loss(step):
        x = torch.randn(8, 4, generator=step_generator(3, "data", step))
        return (net(x) - x[:, :2]).square().mean()

    return loss


def train_small(rank, folder, steps):
    """One process, that saves after every step."""
    net = new_net()
    settings = replace(SETTINGS, steps=steps, save_every=1, keep=2)
    for _ in Trainer({"net": net}, settings, Path(folder), is_matrix).run(loss_of(net)):
        pass


def new_wan(*, full=False, half=False):
    """A transformer with a LoRA, or all of it to be trained; its frozen weights may be bf16."""
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig

    torch.manual_seed(3)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32,
        num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip
    # As of FlashI2V: called by itself, before the model is.
    model.learnable_proj = nn.Conv3d(16, 16, 1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    if full:
        return model
    model.requires_grad_(False)
    if half:
        model.to(torch.bfloat16)
    targets = ["to_q", "to_k", "to_v", "ffn.net.0.proj", "ffn.net.2"]
    model.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            # From zero, the first steps would say little about lora_A.
            nn.init.normal_(parameter, std=0.05)
    return model


def wan_loss(model, group, batch_size, bad=()):
    """Flow matching without a dataset: a window's number makes it, a sample's its noise.

    Args:
        bad: `(step, rank)` of which the loss is nan.
    """
    order = SampleOrder([k % 2 for k in range(WINDOWS)], [1] * WINDOWS, BATCH, seed=9)

    def loss(step):
        for part in share(order.batch(step), group.data_rank, group.data_world, batch_size):
            pairs = [drawn(sample) for sample in part.samples]
            clean, noise, text, sigma = (torch.stack(values) for values in zip(*pairs, strict=True))
            noisy = clean.lerp(noise, sigma[:, None, None, None, None])
            dtype = model.patch_embedding.weight.dtype
            noisy = noisy - model.learnable_proj(clean[:, :, :1].to(dtype))
            velocity = model(noisy.to(dtype), sigma * 1000, text.to(dtype), return_dict=False)[0]
            error = (velocity.float() - (noise - clean)).square().mean() * part.weight
            yield error * (float("nan") if (step, group.rank) in bad else 1.0)

    return loss


def drawn(sample):
    """Of one sample: latents of its bucket's size, noise, text and noise level."""
    size = (16, 3, 4, 4) if sample.index % 2 else (16, 2, 4, 8)
    window = step_generator(1, "window", sample.index)
    clean, text = torch.randn(size, generator=window), torch.randn(6, 16, generator=window)
    own = step_generator(1, "noise", sample.number)
    return clean, torch.randn(size, generator=own), text, torch.rand((), generator=own)


def train_wan(
    rank,
    folder,
    how="",
    context=1,
    steps=5,
    bad=(),
    stop_at=None,
    batch_size=1,
    anew=False,
    **other,
):
    """Steps on the small transformer; what was reported goes to `reports-RANK.json`.

    Args:
        how: words among `sharded`, `full`, `half` and `checkpointing`.
        context: processes that share a sample.
        stop_at: `(step, rank)` at which a signal comes.
        anew: with `resume` of "never".
    """
    group = join_group(context, torch.device("cpu"))
    model = new_wan(full="full" in how, half="half" in how)
    if "checkpointing" in how:
        model.enable_gradient_checkpointing()
    if context > 1:
        enable_context_parallel(model, group)
    if "sharded" in how:
        shard(model, group)
    settings = replace(WAN_SETTINGS, steps=steps, **other)
    trainer = Trainer(
        {"model": model}, settings, Path(folder), group=group, batch=BATCH,
        resume="never" if anew else "auto",
    )  # fmt: skip
    loss = wan_loss(model, group, batch_size, [tuple(pair) for pair in bad])
    told = {"rank": group.data_rank, "world": group.data_world, "reports": [], "saved": []}

    def struck(step):
        if stop_at == [step, rank]:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from loss(step)

    def save(path, step):
        told["saved"].append(step)

    try:
        with StopSignal().installed() as stop:
            for report in trainer.run(struck, stop, save):
                told["reports"].append([report.step, report.loss, report.grad_norm, report.skipped])
        told["length"] = float(sum(value.square().sum() for value in trainer.weights().values()))
    except Exception as error:  # noqa: BLE001 - told to the test
        told["error"] = [type(error).__name__, str(error)]
    finally:
        (Path(folder) / f"reports-{rank}.json").write_text(json.dumps(told))
        leave_group()


def add_up(rank):
    """What a group says of itself; the processes see the same."""
    group = join_group(1, torch.device("cpu"))
    assert isinstance(group, DataGroup)
    assert group.mean(float(rank)) == 0.5
    assert group.maximum(7 * rank) == 7
    group.wait_for_all()
    leave_group()


def fork(job):
    """The processes of a job."""
    pids = []
    for rank in range(job["world"]):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 1
        try:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["world"]),
                OSP_MEETING=job["meeting"],
            )  # fmt: skip
            signal.signal(signal.SIGINT, signal.default_int_handler)
            globals()[job["work"]](rank, **job["arguments"])
            code = 0
        except BaseException:  # noqa: BLE001 - seen by its exit code
            traceback.print_exc()
        os._exit(code)
    return pids


def answer(numbers):
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


def serve():
    """Answer jobs until stdin ends."""
    import diffusers.models.transformers.transformer_wan
    import peft
    import torch._dynamo  # what the first sharded step would import

    assert diffusers and peft
    torch.set_num_threads(1)
    for line in sys.stdin:
        pids = fork(json.loads(line))
        answer(pids)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        answer(codes)


if __name__ == "__main__":
    serve()
