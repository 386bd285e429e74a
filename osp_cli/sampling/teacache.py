"""TeaCache (arXiv:2411.19108): skip the blocks while the timestep embedding hardly moves.

The variant of VideoX-Fun with the "retention steps" coefficients, which the paper samples its
styles with (section 6.4). A skipped pass adds to its input what the blocks added when they last
ran; patch embedding, output norm and head run always, with the timestep of now.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, ModelHook, StateManager
from torch import Tensor, nn

from osp_cli.sampling.hooks import (
    LEADING_CONTEXT,
    UNCONDITIONAL_CONTEXT,
    below,
    find_hook,
    hooks_changed,
    register,
    remove,
)

_SIGNAL_HOOK = "osp_teacache_signal"
_BLOCK_HOOK = "osp_teacache_block"

_OTHER_SHAPE = "the step cache met another shape within a clip: reset it between clips"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeaCacheConfig:
    """Settings of TeaCache.

    Attributes:
        coefficients: of the polynomial that turns the distance of the signal into a distance of the
            output, highest power first. They belong to a model and to the signal e0, the six-fold
            modulation; TeaCache's other table, for the signal e, must not be used here.
        source: where the coefficients were published, or how they were measured.
        num_inference_steps: of the sampler; a new clip begins after so many steps.
        threshold: of the accumulated distance at which a step is computed again.
        num_start_steps: how many steps are always computed.

    Raises:
        ValueError: Coefficients or source are missing, or a number is out of range.
    """

    coefficients: tuple[float, ...]
    source: str
    num_inference_steps: int
    threshold: float = 0.10
    num_start_steps: int = 5

    def __post_init__(self) -> None:
        if not self.coefficients or not all(map(math.isfinite, self.coefficients)):
            raise ValueError(f"TeaCache needs its model's coefficients, got {self.coefficients}")
        if not self.source:
            raise ValueError("TeaCache needs the source of its coefficients")
        if self.num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps must be at least 1, got {self.num_inference_steps}"
            )
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ValueError(f"threshold must be positive, got {self.threshold}")
        if self.num_start_steps < 0:
            raise ValueError(f"num_start_steps must not be negative, got {self.num_start_steps}")


@dataclass(frozen=True, slots=True)
class TeaCacheDecision:
    """What was decided for one step, and why.

    Attributes:
        computed: whether the blocks ran; False means that their last residual was used again.
        distance: relative L1 distance of e0 to the previous step; None where it is not looked at.
        rescaled: the polynomial of `distance`; it may be negative and is not clamped, as upstream.
        accumulated: sum of `rescaled` since the last computed step, zero if this one is.
    """

    computed: bool
    distance: float | None
    rescaled: float | None
    accumulated: float


class TeaCacheGate:
    """Decides once per step, on the conditional pass; knows nothing of any model.

    Attributes:
        decisions: since the last reset.
        clip: another number for every clip; nothing may be used again across clips.
    """

    def __init__(self, config: TeaCacheConfig) -> None:
        self.config = config
        self.decisions: list[TeaCacheDecision] = []
        self.clip = 0
        self._step = 0
        self._accumulated = 0.0
        self._previous: Tensor | None = None

    def lead(self, signal: Tensor) -> bool:
        """Whether this step is computed, decided from e0 of its conditional pass.

        Args:
            signal: e0, any shape, the same at every step of a clip.

        Raises:
            ValueError: The shape changed in the middle of a clip.
        """
        if self._step == self.config.num_inference_steps:
            self._begin_clip()
        # What bfloat16 rounds away in e0 itself is lost (distances of the recorded sequences are
        # then off by up to 8e-4, and up to 3 of 30 decisions differ); nothing is added to it here.
        signal = signal.detach().float()
        previous, self._previous = self._previous, signal
        if previous is not None and previous.shape != signal.shape:
            raise ValueError(_OTHER_SHAPE)
        self._step += 1
        if previous is None or self._step <= self.config.num_start_steps:
            return self._decide(computed=True)
        distance = ((signal - previous).abs().mean() / previous.abs().mean()).item()
        rescaled = _polynomial(self.config.coefficients, distance)
        self._accumulated += rescaled
        # In this form a distance that is not a number is computed, not skipped for ever.
        computed = not self._accumulated < self.config.threshold
        return self._decide(computed=computed, distance=distance, rescaled=rescaled)

    def follow(self, *, unconditional: bool = True) -> bool:
        """Whether another pass of the step that `lead` decided last is computed.

        The unconditional one is, in the last step of a clip, even where the conditional pass was
        not: VideoX-Fun forgets everything right after its last conditional pass, and its numbers
        are kept here. Those of further prompts, which it does not know, do as the leading one does.

        Raises:
            ValueError: No conditional pass came before.
        """
        if not self.decisions:
            raise ValueError("TeaCache decides on the conditional pass: it must be the first")
        is_last = self._step == self.config.num_inference_steps
        return self.decisions[-1].computed or (unconditional and is_last)

    def reset(self) -> None:
        """Forget the clip and its decisions."""
        self.decisions.clear()
        self._begin_clip()

    def state(self) -> dict[str, Tensor]:
        """Everything, between two steps; for `restore` and for safetensors."""
        state = {
            "counts": torch.tensor([self.clip, self._step]),
            # Not fp32: the sum decides, and resumed runs decide alike.
            "accumulated": torch.tensor(self._accumulated, dtype=torch.float64),
            "decisions": _decisions_as_tensor(self.decisions),
        }
        if self._previous is not None:
            state["previous"] = self._previous.contiguous()
        return state

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Be what the gate was whose `state` this is; `device` is that of the model's inputs.

        Raises:
            KeyError: Something is missing.
        """
        clip, step = state["counts"].tolist()
        self.clip, self._step = int(clip), int(step)
        self._accumulated = state["accumulated"].item()
        # In place: others look at this list.
        self.decisions[:] = _decisions_from_tensor(state["decisions"])
        previous = state.get("previous")
        self._previous = None if previous is None else previous.to(device)

    def _begin_clip(self) -> None:
        self.clip += 1
        self._step = 0
        self._accumulated = 0.0
        self._previous = None

    def _decide(
        self, *, computed: bool, distance: float | None = None, rescaled: float | None = None
    ) -> bool:
        if computed:
            self._accumulated = 0.0
        self.decisions.append(TeaCacheDecision(computed, distance, rescaled, self._accumulated))
        return computed


def apply_teacache(transformer: Any, config: TeaCacheConfig) -> TeaCacheGate:
    """Hook TeaCache into a Wan transformer; `enable_step_cache` is the way to use it.

    Each call must stand inside `transformer.cache_context("cond")` or another context, the
    conditional one first in its step. Memory: one tensor of hidden states per context.
    """
    gate = TeaCacheGate(config)
    branches = StateManager(_Branch)
    register(transformer.condition_embedder, _SignalHook(gate, branches), _SIGNAL_HOOK)
    last = len(transformer.blocks) - 1
    for index, block in enumerate(transformer.blocks):
        hook = _BlockHook(branches, is_first=index == 0, is_last=index == last)
        register(block, hook, _BLOCK_HOOK)
    hooks_changed(transformer)
    return gate


def remove_teacache(transformer: Any) -> None:
    """Undo `apply_teacache`: the forwards are the former ones again, the residuals are freed."""
    remove(transformer, _SIGNAL_HOOK, _BLOCK_HOOK)


def teacache_state(transformer: Any) -> dict[str, Tensor]:
    """What TeaCache on `transformer` remembers between two steps, for `restore_teacache`."""
    hook = find_hook(transformer.condition_embedder, _SIGNAL_HOOK)
    state = {f"gate.{name}": tensor for name, tensor in hook.gate.state().items()}
    for context, branch in hook.branches._state_cache.items():
        if branch.residual is not None:
            state[f"residual.{context}"] = branch.residual.detach().contiguous()
            state[f"clip.{context}"] = torch.tensor(branch.clip)
    return state


def restore_teacache(transformer: Any, state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on where the TeaCache was whose `state` this is.

    Raises:
        KeyError: Something is missing.
    """
    hook = find_hook(transformer.condition_embedder, _SIGNAL_HOOK)
    hook.gate.restore(below(state, "gate"), device)
    hook.branches.reset()
    for context, residual in below(state, "residual").items():
        branch = _Branch()
        branch.residual = residual.to(device)
        branch.clip = int(state[f"clip.{context}"].item())
        hook.branches._state_cache[context] = branch


class _Branch(BaseState):
    """What the passes of one context leave behind for the next."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.clip = 0
        self.computing = True
        self.block_input: Tensor | None = None
        self.residual: Tensor | None = None


class _SignalHook(ModelHook):
    """On the condition embedder, whose second output is e0."""

    _is_stateful = True

    def __init__(self, gate: TeaCacheGate, branches: StateManager) -> None:
        super().__init__()
        self.gate = gate
        self.branches = branches

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        branch = self.branches.get_state()
        context = self.branches.context.name
        if context == LEADING_CONTEXT:
            computing = self.gate.lead(output[1])
        else:
            computing = self.gate.follow(unconditional=context == UNCONDITIONAL_CONTEXT)
        if branch.clip != self.gate.clip:
            branch.reset()
            branch.clip = self.gate.clip
        # A branch that has not run yet, as with guidance that begins late, has nothing to reuse.
        branch.computing = computing or branch.residual is None
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.gate.reset()
        self.branches.reset()
        return module


class _BlockHook(ModelHook):
    """On every block: the first adds the residual of a skipped pass, the last one records it."""

    def __init__(self, branches: StateManager, *, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.branches = branches
        self.is_first = is_first
        self.is_last = is_last

    def new_forward(
        self, module: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        branch = self.branches.get_state()
        if not branch.computing:
            return self._reuse(branch, hidden_states) if self.is_first else hidden_states
        if self.is_first:
            branch.block_input = hidden_states
        output: Tensor = self.fn_ref.original_forward(hidden_states, *args, **kwargs)
        if self.is_last:
            branch.residual = output - branch.block_input
            branch.block_input = None
        return output

    def _reuse(self, branch: _Branch, hidden_states: Tensor) -> Tensor:
        assert branch.residual is not None
        if branch.residual.shape != hidden_states.shape:
            raise ValueError(_OTHER_SHAPE)
        return hidden_states + branch.residual


def _decisions_as_tensor(decisions: list[TeaCacheDecision]) -> Tensor:
    """`(steps, 4)` float64, nan where there is no number."""

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    rows = [
        [float(d.computed), number(d.distance), number(d.rescaled), d.accumulated]
        for d in decisions
    ]
    return torch.tensor(rows, dtype=torch.float64).view(-1, 4)


def _decisions_from_tensor(rows: Tensor) -> list[TeaCacheDecision]:
    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    return [
        TeaCacheDecision(bool(computed), number(distance), number(rescaled), accumulated)
        for computed, distance, rescaled, accumulated in rows.tolist()
    ]


def _polynomial(coefficients: tuple[float, ...], x: float) -> float:
    total = 0.0
    for coefficient in coefficients:
        total = total * x + coefficient
    return total
