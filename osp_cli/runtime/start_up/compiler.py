"""What torch's compiler is asked at import, answered without it, and told to it when it comes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from osp_cli.runtime.start_up.deferred import answer_without
from osp_cli.runtime.start_up.loaders import TreatingFinder
from osp_cli.runtime.start_up.stand_ins import LaterModule, later_function

_COMPILER = "torch._dynamo"
_INDEX_MODE = f"{_COMPILER}._trace_wrapped_higher_order_op"

# Modules that import it before anybody compiles.
IMPORTERS = ("diffusers.utils.torch_utils", "torch._compile", "transformers.masking_utils")

TREATMENTS = {"diffusers.utils.torch_utils": answer_without(_COMPILER, False, "is_compiled_module")}

_missed: list[Any] = []


@contextlib.contextmanager
def kept_out() -> Iterator[None]:
    """Within this block, decorators of `torch.compiler` and `torch._dynamo` do without it."""
    import torch.compiler

    names = [name for name in _DECORATORS if hasattr(torch.compiler, name)]
    before = {name: getattr(torch.compiler, name) for name in names}
    try:
        for name in names:
            setattr(torch.compiler, name, _DECORATORS[name])
        if _COMPILER not in sys.modules:
            # Some decorate with `@torch._dynamo...`, which imports it as well.
            torch._dynamo = _STAND_IN
        yield
    finally:
        for name in names:
            setattr(torch.compiler, name, before[name])
        if vars(torch).get("_dynamo") is _STAND_IN:
            del torch._dynamo


def _allow_in_graph(fn: Any) -> Any:
    """`torch._dynamo.allow_in_graph`, told to the compiler once there is one."""
    if _COMPILER in sys.modules:
        return sys.modules[_COMPILER].allow_in_graph(fn)
    if _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)
    _missed.append(fn)
    return fn


def _assume_constant_result(fn: Any) -> Any:
    """`torch._dynamo.assume_constant_result`: a mark, which needs no compiler."""
    fn._dynamo_marked_constant = True
    return fn


def _disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
    """`torch._dynamo.disable` without an import of the compiler: nothing compiles before that.

    accelerate does the same for its own hooks.
    """
    if fn is None:
        return lambda fn: _disable(fn, recursive, **options)
    if _COMPILER in sys.modules or not inspect.isfunction(fn):
        return importlib.import_module(_COMPILER).disable(fn, recursive, **options)

    @functools.cache
    def disabled() -> Callable[..., Any]:
        return sys.modules[_COMPILER].disable(fn, recursive, **options)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _COMPILER not in sys.modules:
            return fn(*args, **kwargs)
        return disabled()(*args, **kwargs)

    # What the compiler looks for before it steps into a function.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = options.get("reason")  # type: ignore[attr-defined]
    return call


_DECORATORS: dict[str, Callable[..., Any]] = {
    "allow_in_graph": _allow_in_graph,
    "assume_constant_result": _assume_constant_result,
    "disable": _disable,
}
_STAND_IN = LaterModule(_COMPILER, _DECORATORS)
STAND_INS = {
    _COMPILER: _STAND_IN,
    _INDEX_MODE: LaterModule(
        _INDEX_MODE,
        {"TransformGetItemToIndex": later_function(_INDEX_MODE, "TransformGetItemToIndex")},
    ),
}


def _tell(module: ModuleType, execute: Callable[[], None]) -> None:
    """Load the compiler, and tell it what it has missed."""
    execute()
    with contextlib.suppress(ValueError):
        sys.meta_path.remove(_watch)
    for fn in _missed:
        module.allow_in_graph(fn)
    _missed.clear()
    # Compiled code must meet the real things: a stand-in would be a hole in its graph.
    for importer in IMPORTERS:
        if importer in sys.modules:
            _bind_real(vars(sys.modules[importer]))


def _bind_real(bound: dict[str, Any]) -> None:
    for home, stand_in in STAND_INS.items():
        for name, value in vars(stand_in).items():
            for key in [key for key, it in bound.items() if it is value and callable(it)]:
                with contextlib.suppress(ImportError, AttributeError):
                    bound[key] = getattr(importlib.import_module(home), name)


# On `sys.meta_path` from the first thing that the compiler misses until it comes.
_watch = TreatingFinder({_COMPILER: _tell})
