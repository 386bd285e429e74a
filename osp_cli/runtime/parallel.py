"""One clip on several graphics cards: context parallelism, seen from the processes that compute.

Each holds the whole transformer and a share of the tokens; diffusers' context parallelism passes
heads and tokens around in every attention (DeepSpeed-Ulysses, arXiv:2309.14509). The leader does
everything else too. The others, told through a socket, load the same weights and take the same
steps.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks.context_parallel import remove_context_parallel
from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK
from diffusers.hooks.hooks import ModelHook
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from osp_cli.errors import WontFitError
from osp_cli.events import StepDone
from osp_cli.models.context_parallel import an_accelerator
from osp_cli.pipelines.flash_i2v import (
    Conditions,
    Sampling,
    SamplingInputs,
    SamplingState,
)
from osp_cli.plan import Plan
from osp_cli.registry import ModelSpec
from osp_cli.runtime.devices import check_gpus, resolve_device
from osp_cli.runtime.distributed import Seat
from osp_cli.runtime.memory_errors import is_out_of_memory
from osp_cli.runtime.models import Models
from osp_cli.sampling.hooks import below, find_hook, hooks_changed, register, remove
from osp_cli.sampling.step_cache import FBCacheConfig
from osp_cli.style_mix import Weight

# A step that has not ended by then never will; that a process died is noticed at once.
_TIMEOUT = timedelta(minutes=30)
# Of what step caches remember, the hidden states: `(1, tokens, channels)`.
_PER_TOKEN = re.compile(r"\w+\.(residual|head|tail)\.")
_GATHER_HOOK = "osp_gather_tokens"
_OUTPUT = "proj_out"


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that share a clip, seen from one of them.

    Attributes:
        mesh: of their devices, as diffusers wants it.
    """

    mesh: DeviceMesh

    @property
    def size(self) -> int:
        """How many there are."""
        return int(self.mesh.size())

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return dist.get_rank()

    def share(self, tensor: Tensor) -> Tensor:
        """Of `(1, tokens, ...)`, the tokens of this process."""
        return tensor.tensor_split(self.size, dim=1)[self.rank]

    def gathered(self, tensor: Tensor, num_tokens: int) -> Tensor:
        """Of everybody's `share`, the whole; all must call it.

        Not diffusers' gathering of uneven shares, which gloo refuses: here all are sent at the size
        of the largest.
        """
        most, left = divmod(num_tokens, self.size)
        lengths = [most + (rank < left) for rank in range(self.size)]
        padding = (0, 0) * (tensor.ndim - 2) + (0, lengths[0] - tensor.shape[1])
        padded = nn.functional.pad(tensor, padding).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        cut = [part[:, :length] for part, length in zip(parts, lengths, strict=True)]
        return torch.cat(cut, dim=1)

    def mean(self, share: Tensor, num_tokens: int) -> Tensor:
        """The mean of a tensor of which each process has its `share`; all must call it."""
        total = share.double().sum()
        dist.all_reduce(total)
        return total / (num_tokens * (share.numel() // share.shape[1]))


def join(seat: Seat) -> Group | None:
    """Meet the others; None where there are none.

    Raises:
        InvalidRequestError: there are not that many devices.
    """
    if seat.size == 1:
        return None
    device = resolve_device(seat.device)
    check_gpus(seat.size, seat.device, device)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(seat.rank)
        backend = "cpu:gloo,cuda:nccl"
    store = dist.FileStore(str(Path(seat.folder) / "meeting"), seat.size)
    dist.init_process_group(
        backend, store=store, rank=seat.rank, world_size=seat.size, timeout=_TIMEOUT
    )
    shape = (1, seat.size)
    return Group(init_device_mesh(device.type, shape, mesh_dim_names=("ring", "ulysses")))


class Leader:
    """The process that makes the clip, and tells the others what to do with it.

    Args:
        group: None where it is alone.
        others: sockets to them.

    Attributes:
        is_lost: something was broken off that all do together, so that the others wait for ever.
    """

    def __init__(self, group: Group | None, others: Sequence[Connection[Any, Any]]) -> None:
        self.is_lost = False
        self._group = group
        self._others = others

    def load(self, spec: ModelSpec, plan: Plan, folder: Path) -> None:
        """Let the others load the transformer, if they do not have it yet; nobody waits for it."""
        self.tell("load", spec, plan, folder)

    @contextmanager
    def sampling(
        self,
        pipeline: Any,
        inputs: SamplingInputs,
        conditions: Conditions,
        state: SamplingState | None,
    ) -> Iterator[SharedSampling]:
        """As `FlashI2VPipeline.sampling`, on all devices.

        Raises:
            ValueError: there are no other processes.
        """
        if self._group is None:
            raise ValueError("one process alone cannot share a clip")
        if state is None:
            state = SamplingState(pipeline.initial_noise(inputs), 0)
        conditions = pipeline.with_projection(conditions)
        # What it shows is in the conditions.
        inputs = replace(inputs, image=None)
        with ExitStack() as stack:
            with self.together(
                "sample", inputs, type(conditions), state.step, pack(conditions, state)
            ):
                shared = _shared(pipeline, self._group, inputs, conditions, state)
                own = stack.enter_context(shared)
            try:
                num_tokens = _num_tokens(pipeline.transformer, state.latents)
                yield SharedSampling(own, self, self._group, num_tokens)
            finally:
                if not self.is_lost:
                    self.tell("leave")

    @contextmanager
    def together(self, word: str, *values: Any) -> Iterator[None]:
        """Inside, all do the same; whoever fails in the middle of it leaves the others waiting."""
        self.tell(word, *values)
        self.is_lost = True
        yield
        self.is_lost = False

    def tell(self, word: str, *values: Any) -> None:
        """Let the others do something."""
        # Not the socket's own pickling, in which torch would put tensors into shared memory.
        message = pickle.dumps((word, values))
        for other in self._others:
            other.send_bytes(message)

    def end(self) -> None:
        """Let the others end."""
        self.tell("end")
        if self._group is not None:
            dist.destroy_process_group()


class SharedSampling:
    """A `Sampling` that all devices take part in, for the leader.

    Args:
        own: the leader's.
        leader: of the others.
        group: of all.
        num_tokens: of the clip.
    """

    def __init__(self, own: Sampling, leader: Leader, group: Group, num_tokens: int) -> None:
        self.num_steps = own.num_steps
        self._own = own
        self._leader = leader
        self._group = group
        self._num_tokens = num_tokens

    @property
    def latents(self) -> Tensor:
        """As of `Sampling`."""
        return self._own.latents

    @property
    def step(self) -> int:
        """As of `Sampling`."""
        return self._own.step

    def estimate(self) -> Tensor:
        """As of `Sampling`."""
        return self._own.estimate()

    def steps(self) -> Iterator[StepDone]:
        """As of `Sampling`."""
        steps = self._own.steps()
        while self.step < self.num_steps:
            with self._leader.together("step"):
                done = next(steps)
            yield done

    def state(self) -> SamplingState:
        """As of `Sampling`, with what all devices remember: a single one can go on from it."""
        state = self._own.state()
        if not _shares(state):
            return state
        with self._leader.together("gather"):
            return _gathered(state, self._group, self._num_tokens)


def follow(group: Group | None, leader: Connection[Any, Any]) -> None:
    """Do what the leader tells, until it tells to end.

    Raises:
        EOFError: the leader has gone.
        WontFitError: the memory ended.
        OspError: the weights cannot be loaded.
    """
    assert group is not None
    models, model = Models(), ""
    try:
        while True:
            # From the process that has started with this one, through a socket without a name.
            word, values = pickle.loads(leader.recv_bytes())
            if word == "load":
                spec, plan, folder = values
                model = plan.model
                deque(models.load(spec, plan, folder, ("transformer",)), maxlen=0)
            elif word == "sample":
                _sample_along(models.pipeline, group, leader, *values)
            else:
                break
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise WontFitError(
            f"{model} ran out of memory on device {group.rank} of {group.size}",
            hint="use fewer --frames or a smaller --size, --offload group or --quant fp8",
        ) from error
    dist.destroy_process_group()


def _sample_along(
    pipeline: Any,
    group: Group,
    leader: Connection[Any, Any],
    inputs: SamplingInputs,
    kind: type[Conditions],
    step: int,
    packed: bytes,
) -> None:
    conditions, state = unpack(packed, kind, step, pipeline.transformer.device)
    num_tokens = _num_tokens(pipeline.transformer, state.latents)
    with _shared(pipeline, group, inputs, conditions, state) as own:
        steps = own.steps()
        while True:
            word, _ = pickle.loads(leader.recv_bytes())
            if word == "step":
                next(steps)
            elif word == "gather":
                _gathered(own.state(), group, num_tokens)
            else:
                return


@contextmanager
def _shared(
    pipeline: Any,
    group: Group,
    inputs: SamplingInputs,
    conditions: Conditions,
    state: SamplingState,
) -> Iterator[Sampling]:
    """The sampling of one process; all must enter it."""
    own_cache = {
        name: group.share(tensor) if _PER_TOKEN.match(name) else tensor
        for name, tensor in state.cache.items()
    }
    state = replace(state, cache=own_cache)
    num_tokens = _num_tokens(pipeline.transformer, state.latents)
    with (
        pipeline.sampling(inputs, conditions, state) as own,
        # Around the step cache, so that it sees the shares of hidden states only.
        context_parallel(pipeline.transformer, group, num_tokens),
    ):
        if isinstance(inputs.step_cache, FBCacheConfig):
            _decide_together(pipeline.transformer, group, num_tokens)
        yield own


@contextmanager
def context_parallel(transformer: Any, group: Group, num_tokens: int) -> Iterator[None]:
    """Inside, each call of a Wan transformer is shared by all processes; outside, it is as it was.

    Args:
        transformer: with all other hooks; it must be called with `return_dict=False`.
        group: of the processes, each of which calls it with the same.
        num_tokens: of its sequence, any number.
    """
    even = num_tokens % group.size == 0
    plan = {name: part for name, part in transformer._cp_plan.items() if even or name != _OUTPUT}
    config = ContextParallelConfig(
        ulysses_degree=group.size, mesh=group.mesh, ulysses_anything=not even
    )
    with an_accelerator():
        transformer.enable_parallelism(config=config, cp_plan=plan)
    if not even:
        register(transformer.get_submodule(_OUTPUT), _GatherHook(group, num_tokens), _GATHER_HOOK)
    hooks_changed(transformer)
    try:
        yield
    finally:
        remove_context_parallel(transformer, plan)
        remove(transformer, _GATHER_HOOK)
        # The library has no way back.
        transformer._parallel_config = None
        for module in transformer.modules():
            processor: Any = getattr(module, "processor", None)
            if hasattr(processor, "_parallel_config"):
                processor._parallel_config = None


class _GatherHook(ModelHook):
    """Makes uneven shares of the tokens whole again."""

    def __init__(self, group: Group, num_tokens: int) -> None:
        super().__init__()
        self.group = group
        self.num_tokens = num_tokens

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return self.group.gathered(output, self.num_tokens)


def _decide_together(transformer: Any, group: Group, num_tokens: int) -> None:
    """Let the first-block cache look at all tokens: each alone would decide by its own.

    TeaCache and MagCache need no such thing, as neither looks at tokens.
    """
    hook = find_hook(transformer.blocks[0], _FBC_LEADER_BLOCK_HOOK)

    def should_compute(residual: Tensor) -> bool:
        previous = hook.state_manager.get_state().head_block_residual
        if previous is None:
            return True
        change = group.mean((residual - previous).abs(), num_tokens)
        return bool(change / group.mean(previous.abs(), num_tokens) > hook.threshold)

    hook._should_compute_remaining_blocks = should_compute


def _num_tokens(transformer: Any, latents: Tensor) -> int:
    size = zip(latents.shape[2:], transformer.config.patch_size, strict=True)
    return math.prod(length // patch for length, patch in size)


def _shares(state: SamplingState) -> list[str]:
    """Names of what the step cache remembers of each token; the same on all devices."""
    return sorted(name for name in state.cache if _PER_TOKEN.match(name))


def _gathered(state: SamplingState, group: Group, num_tokens: int) -> SamplingState:
    """The state with everybody's tokens; all must call it."""
    whole = {name: group.gathered(state.cache[name], num_tokens) for name in _shares(state)}
    return replace(state, cache={**state.cache, **whole})


def pack(conditions: Conditions, state: SamplingState) -> bytes:
    """The tensors of both as they can be sent; how many steps were done is not among them."""
    tensors: dict[str, Tensor | None] = {
        "latents": state.latents,
    }
    for index, (tensor, weight) in enumerate(conditions.also):
        tensors[f"also.{index}"] = tensor
        # A number, or a row of them.
        tensors[f"weight.{index}"] = torch.tensor(weight, dtype=torch.float64)
    tensors |= {f"condition.{name}": getattr(conditions, name) for name in _names(type(conditions))}
    tensors |= {f"solver.{name}": tensor for name, tensor in state.solver.items()}
    tensors |= {f"cache.{name}": tensor for name, tensor in state.cache.items()}
    return save(
        {name: part.cpu().contiguous() for name, part in tensors.items() if part is not None}
    )


def unpack(
    data: bytes, kind: type[Conditions], step: int, device: torch.device
) -> tuple[Conditions, SamplingState]:
    """What was packed, conditions of that kind, on a device."""
    tensors = {name: tensor.to(device) for name, tensor in load(data).items()}
    there = below(tensors, "condition")
    weights = below(tensors, "weight")
    also = tuple(
        (tensors[f"also.{index}"], _weight_of(weights[str(index)])) for index in range(len(weights))
    )
    conditions = kind(**{name: there.get(name) for name in _names(kind)}, also=also)
    state = SamplingState(
        tensors["latents"], step, below(tensors, "solver"), below(tensors, "cache")
    )
    return conditions, state


def _weight_of(tensor: Tensor) -> Weight:
    weight = tensor.tolist()
    return tuple(weight) if isinstance(weight, list) else weight


def _names(kind: type[Conditions]) -> list[str]:
    """The fields that are tensors, or None."""
    return [field.name for field in fields(kind) if field.name != "also"]
