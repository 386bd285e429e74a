"""Training on several processes: who they are, what each holds, and how gradients become one.

Two ways, told apart by the parameters themselves. Replicated: every process holds all parameters
and the gradients are averaged here; right for small models. Sharded (torch's FSDP2, `shard`): each
holds a part of every parameter and FSDP averages. Both may go with context parallelism (diffusers'
Ulysses, arXiv:2309.14509), where the processes of a group share a sample and each has a part of
its tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from osp_cli.errors import InvalidRequestError
from osp_cli.models.context_parallel import an_accelerator

# Where the processes of `train_launch` meet, in place of an address and a port.
MEETING_VARIABLE = "OSP_MEETING"

# phi of FlashI2V, which is applied to the first frame before the model is.
_CALLED = ("learnable_proj",)

# A step, or a sample that the first process makes, that has not ended by then never will; that a
# process died is noticed at once.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class DataGroup:
    """The processes of a run, seen from one of them.

    Attributes:
        rank, world: which process this is, and how many there are.
        context_world: how many share a sample; neighbouring ranks do.
        device: of this process.
        mesh: of all, by `data`, `ring` and `ulysses`; None where there is only one.
    """

    rank: int = 0
    world: int = 1
    context_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None

    @property
    def data_rank(self) -> int:
        """Which share of the samples is this process's."""
        return self.rank // self.context_world

    @property
    def data_world(self) -> int:
        """In how many shares the samples of a step are computed."""
        return self.world // self.context_world

    @property
    def context_rank(self) -> int:
        """Which part of its samples' tokens is this process's."""
        return self.rank % self.context_world

    @property
    def writes(self) -> bool:
        """Of all processes, only the first writes files and speaks."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """Over data processes; the same on all, to the bit. All must call it."""
        if self.world == 1:
            return value
        # Those that share a sample all have the same value.
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total / self.world)

    def maximum(self, value: int) -> int:
        """Over all processes, each of which must call it."""
        if self.world == 1:
            return value
        most = torch.tensor(value)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def told(self, value: Any) -> Any:
        """What the first process has of it, for all; plain objects only. All must call it."""
        if self.world == 1:
            return value
        box = [value]
        # From one process of this run to another: nobody else can speak here.
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def wait_for_all(self) -> None:
        """Until every process has called it."""
        self.maximum(0)

    def average_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Make gradients of whole parameters the mean over processes; FSDP did so with its own."""
        if self.world == 1:
            return
        held = [p for p in parameters.values() if not isinstance(p, DTensor)]
        if not held:
            return
        for parameter in held:
            # Another process may have used what this one's samples left out.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients: list[Tensor] = [p.grad for p in held if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, part in zip(gradients, flat.split([p.numel() for p in held]), strict=True):
            gradient.copy_(part.view_as(gradient))


def current_group() -> DataGroup:
    """All processes that have met already, each with samples of its own; or this one alone."""
    if not dist.is_initialized():
        return DataGroup()
    return DataGroup(dist.get_rank(), dist.get_world_size())


def join_group(context_parallel: int = 1, device: torch.device | None = None) -> DataGroup:
    """Meet the other processes, as the environment tells of them; or be alone.

    The variables are torchrun's, which `accelerate launch` and `osp train-lora --gpus` set too.

    Args:
        context_parallel: how many processes share a sample.
        device: the kind of device, by default CUDA where there is one.

    Raises:
        InvalidRequestError: the processes cannot be grouped so, or there are too few devices.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % context_parallel:
        raise InvalidRequestError(
            f"{world} processes cannot be shared out in groups of "
            f"--context-parallel {context_parallel}"
        )
    if world == 1:
        return DataGroup(device=device)
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise InvalidRequestError(
                f"process {local + 1} has no graphics card of its own: "
                f"there are {torch.cuda.device_count()}",
                hint=f"--gpus {max(1, torch.cuda.device_count())}",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    meeting = os.environ.get(MEETING_VARIABLE)
    dist.init_process_group(
        backend,
        init_method=f"file://{meeting}" if meeting else "env://",
        rank=rank,
        world_size=world,
        timeout=_TIMEOUT,
    )
    shape = (world // context_parallel, 1, context_parallel)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "ring", "ulysses"))
    return DataGroup(rank, world, context_parallel, device, mesh)


def leave_group() -> None:
    """The end of `join_group`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(
    model: nn.Module, group: DataGroup, blocks: str = "blocks", whole: Sequence[str] = _CALLED
) -> nn.Module:
    """Share a model's parameters out among all processes (torch's FSDP2), in place.

    Frozen and trained ones alike; adapters must be in it already. Whole parameters exist one block
    at a time, while it computes.

    Args:
        model: the same on all processes, on the group's device.
        group: of more than one.
        blocks: the name of its list of transformer blocks.
        whole: small modules of it that are also called by themselves, and so stay whole.
    """
    assert group.mesh is not None, "a single process has nobody to share with"
    # Processes of a context group hold parts of their own too.
    everybody = init_device_mesh(group.device.type, (group.world,), mesh_dim_names=("shard",))
    for block in model.get_submodule(blocks).children():
        fully_shard(block, mesh=everybody)
    kept = [getattr(model, name) for name in whole if hasattr(model, name)]
    ignored = {parameter for module in kept for parameter in module.parameters()}
    fully_shard(model, mesh=everybody, ignored_params=ignored)
    return model


def check_context(heads: int, num_tokens: Iterable[int], degree: int) -> None:
    """Refuse processes among which the samples cannot be shared out evenly.

    Args:
        heads: of the transformer's attention.
        num_tokens: of the samples, one number for each of their sizes.
        degree: how many processes share a sample.

    Raises:
        InvalidRequestError: the message names what is left over.
    """
    uneven = sorted({count for count in num_tokens if count % degree})
    if heads % degree:
        what = f"{heads} attention heads"
    elif uneven:
        what = f"samples of {', '.join(map(str, uneven[:5]))} tokens"
    else:
        return
    raise InvalidRequestError(
        f"{what} cannot be shared out evenly to --context-parallel {degree}",
        hint="leave out --context-parallel, or choose a --size and --frames that divide",
    )


def enable_context_parallel(model: Any, group: DataGroup) -> None:
    """Share the tokens of each sample among the processes of a context group (Ulysses).

    Before `shard`, if both; see `check_context`. Each process sees the whole output, but its
    gradients are only its tokens' share: the true ones are the sum over the group. `Trainer` sees
    to that.

    Args:
        model: a Wan transformer of diffusers.
        group: with `context_world` above 1.

    Raises:
        InvalidRequestError: the heads cannot be shared out.
    """
    from diffusers import ContextParallelConfig  # seconds, which a lone process need not wait for

    check_context(model.config.num_attention_heads, (), group.context_world)
    assert group.mesh is not None, "a single process has nobody to share with"
    config = ContextParallelConfig(
        ulysses_degree=group.context_world, mesh=group.mesh["ring", "ulysses"]
    )
    with an_accelerator():
        model.enable_parallelism(config=config)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process holds a part, or any other; all must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(value: Tensor, into: Tensor) -> None:
    """Copy a whole tensor into one of the same shape, or each process its own part of it."""
    if isinstance(into, DTensor):
        # Everybody has the whole: nothing needs to be sent.
        value = value.to(into.device, into.dtype)
        value = distribute_tensor(value, into.device_mesh, into.placements, src_data_rank=None)
    into.copy_(value)


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """What an optimizer remembers of a parameter, shared out as that is if it has its shape."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    parts = torch.empty_like(parameter, dtype=value.dtype)
    put(value, parts)
    return parts


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """The length of all gradients together; all must call it."""
    norms = []
    for sharded in (False, True):
        held = [
            p.grad
            for p in parameters.values()
            if p.grad is not None and isinstance(p, DTensor) == sharded
        ]
        if held:
            norms.append(whole(nn.utils.get_total_norm(held)))
    if not norms:
        return torch.zeros(())
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Mapping[str, nn.Parameter], most: float, norm: Tensor) -> None:
    """Scale all gradients so that their `gradient_norm`, now `norm`, is at most that."""
    for sharded in (False, True):
        held = [p for p in parameters.values() if isinstance(p, DTensor) == sharded]
        nn.utils.clip_grads_with_norm_(held, most, norm)


def has_lost_touch(error: BaseException) -> bool:
    """Whether an error is but the echo of another process's end."""
    words = ("gloo", "nccl", "connection closed", "connection reset")
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in told for word in words)
