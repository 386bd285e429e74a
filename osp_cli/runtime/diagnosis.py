"""What `osp doctor` needs torch for: the devices, and the plan of a run with no dial touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from osp_cli.config import Layer
from osp_cli.plan import Plan
from osp_cli.runtime.devices import available_memory, resolve_device, this_machine


@dataclass(frozen=True, slots=True)
class Device:
    """A device that torch can compute on.

    Attributes:
        name: what `--device` takes.
        title: what its maker calls it.
        total_bytes: of its memory; None where torch does not tell.
        free_bytes: of its memory.
    """

    name: str
    title: str
    total_bytes: int | None
    free_bytes: int


def torch_devices() -> list[Device]:
    """All devices, the one that `--device auto` takes first."""
    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            devices.append(Device(f"cuda:{index}", name, int(total), int(free)))
    if torch.backends.mps.is_available():
        free = available_memory(torch.device("mps"))
        devices.append(Device("mps", "Apple GPU", int(torch.mps.recommended_max_memory()), free))
    free = available_memory(torch.device("cpu"))
    devices.append(Device("cpu", f"{torch.get_num_threads()} threads", None, free))
    return devices


def torch_build() -> str:
    """What torch was built for: `CUDA 12.8`, `ROCm 6.4` or `CPU`."""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"


def default_plan(layers: Sequence[Layer]) -> tuple[Plan, int]:
    """The plan of `osp generate PICTURE` with nothing else said, and the device's free bytes.

    Args:
        layers: variables and configuration files, strongest first.

    Raises:
        OspError: such a run would be refused; the message is the one that it would give.
    """
    # Here, so that the devices can still be told where one of these is broken.
    from osp_cli.dials import Seeds
    from osp_cli.media.files import check_free_space
    from osp_cli.registry import find_model
    from osp_cli.runtime.planner import make_plan
    from osp_cli.settings import Source, settle_dials, settle_generate

    spec = find_model(settle_dials(layers)[0]["model"].value)
    # No picture is read: one of the card's default shape is assumed.
    source = Source(image=Path("picture.png")) if spec.image_to_video else Source(text="a text")
    request = settle_generate(source, layers=layers, seed=Seeds([0]), count=1).request
    weights = spec.weights_dir()
    device = resolve_device(request.device)
    size = spec.default_size
    if request.width is not None and request.height is not None:
        size = request.width, request.height
    machine = this_machine(device, measure=True)
    plan = make_plan(request, spec, size=size, machine=machine, weights=weights)
    check_free_space(Path(), plan.disk_bytes, what="the video")
    return plan, machine.device_bytes
