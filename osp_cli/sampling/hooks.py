"""What our hooks on diffusers' hook registry share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.hooks.hooks import BaseState, HookRegistry, ModelHook, StateManager
from torch import Tensor, nn

# The pass that stands for its step; the others of the step have other names.
LEADING_CONTEXT = "cond"
# The pass of guidance.
UNCONDITIONAL_CONTEXT = "uncond"


def conditional_context(number: int) -> str:
    """Name of the pass of prompt `number`, of several that make one clip; 0 is the leading one."""
    return LEADING_CONTEXT if number == 0 else f"{LEADING_CONTEXT}{number}"


class ContextHook(ModelHook):
    """A hook that knows in which `cache_context` it is called."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        # Nothing is kept there: diffusers tells the context to hooks that hold a state manager.
        self._contexts = StateManager(BaseState)

    @property
    def context(self) -> str:
        """Name of the present context.

        Raises:
            ValueError: The model is called outside of any.
        """
        return str(self._contexts.context.name)

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module


def register(module: nn.Module, hook: ModelHook, name: str) -> None:
    """Put `hook` around what `module` computes; call `hooks_changed` on the model afterwards."""
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)


def has_hook(module: nn.Module, name: str) -> bool:
    """Whether `module` itself carries a hook of that name."""
    return find_hook(module, name) is not None


def find_hook(module: nn.Module, name: str) -> Any:
    """The hook of that name on `module` itself, or None."""
    return HookRegistry.check_if_exists_or_initialize(module).get_hook(name)


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix` and a dot, by what follows."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in state.items()
        if name.startswith(f"{prefix}.")
    }


def remove(model: nn.Module, *names: str) -> None:
    """Take the hooks of these names off `model` and all of its parts, where there are any."""
    registry: Any = HookRegistry.check_if_exists_or_initialize(model)
    for name in names:
        registry.remove_hook(name, recurse=True)
    hooks_changed(model)


def hooks_changed(model: nn.Module) -> None:
    """`cache_context` keeps a list of the hooked parts of a model, which is stale now."""
    HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()
