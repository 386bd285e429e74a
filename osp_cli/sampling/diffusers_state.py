"""Saving and restoring what diffusers' step caches remember between two steps.

Their state lies in plain attributes of per-context objects, under names that are internal to
diffusers 0.42; the tests that resume a run to the very same bits notice if they change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK, FBCSharedBlockState
from diffusers.hooks.hooks import StateManager
from diffusers.hooks.mag_cache import _MAG_CACHE_LEADER_BLOCK_HOOK, MagCacheState
from torch import Tensor

from osp_cli.sampling.hooks import below, find_hook


def fbcache_state(transformer: Any) -> dict[str, Tensor]:
    """The first-block cache's residuals, by context; for `restore_fbcache` and for safetensors."""
    state: dict[str, Tensor] = {}
    for context, seen in _manager(transformer, _FBC_LEADER_BLOCK_HOOK)._state_cache.items():
        if seen.tail_block_residuals is not None:
            state[f"head.{context}"] = seen.head_block_residual.detach().contiguous()
            state[f"tail.{context}"] = seen.tail_block_residuals[0].detach().contiguous()
    return state


def restore_fbcache(transformer: Any, state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on where the cache was whose `state` this is.

    Raises:
        KeyError: Something is missing.
    """
    manager = _manager(transformer, _FBC_LEADER_BLOCK_HOOK)
    manager.reset()
    for context, head in below(state, "head").items():
        seen = FBCSharedBlockState()
        seen.head_block_residual = head.to(device)
        # The second place is for models whose blocks return the text too.
        seen.tail_block_residuals = (state[f"tail.{context}"].to(device), None)
        manager._state_cache[context] = seen


def magcache_state(transformer: Any) -> dict[str, Tensor]:
    """MagCache's residuals and sums, by context; for `restore_magcache` and for safetensors."""
    state: dict[str, Tensor] = {}
    manager = _manager(transformer, _MAG_CACHE_LEADER_BLOCK_HOOK)
    for context, seen in manager._state_cache.items():
        state[f"counts.{context}"] = torch.tensor([seen.step_index, seen.accumulated_steps])
        sums = [float(seen.accumulated_ratio), float(seen.accumulated_err)]
        state[f"sums.{context}"] = torch.tensor(sums, dtype=torch.float64)
        # None at the end of a clip.
        if seen.previous_residual is not None:
            state[f"residual.{context}"] = seen.previous_residual.detach().contiguous()
    return state


def restore_magcache(transformer: Any, state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on where the cache was whose `state` this is.

    Raises:
        KeyError: Something is missing.
    """
    manager = _manager(transformer, _MAG_CACHE_LEADER_BLOCK_HOOK)
    manager.reset()
    for context, counts in below(state, "counts").items():
        seen = MagCacheState()
        seen.step_index, seen.accumulated_steps = counts.tolist()
        sums = state[f"sums.{context}"]
        # fp32 tensors, as diffusers' own arithmetic with its fp32 ratios makes them.
        seen.accumulated_ratio, seen.accumulated_err = sums.float()
        residual = state.get(f"residual.{context}")
        seen.previous_residual = None if residual is None else residual.to(device)
        manager._state_cache[context] = seen


def _manager(transformer: Any, hook_name: str) -> StateManager:
    manager: StateManager = find_hook(transformer.blocks[0], hook_name).state_manager
    return manager
