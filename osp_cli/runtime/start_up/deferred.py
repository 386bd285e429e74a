"""Packages whose own code runs when something is asked of them, and functions that ask less."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from osp_cli.runtime.start_up.loaders import Treatment

_EXECUTE = "_osp_execute"
_lock = threading.RLock()


class _DeferredPackage(ModuleType):
    """A package whose submodules can be imported, and whose own code runs when it is asked."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        _run(self)
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        _run(self)
        return dir(self)


def _defer(module: ModuleType, execute: Callable[[], None]) -> None:
    vars(module)[_EXECUTE] = execute
    module.__class__ = _DeferredPackage


def _run(module: ModuleType) -> None:
    """Run what was deferred; where it fails, it is as if it had not been asked.

    Raises:
        ImportError: in place of an AttributeError, which would pass for a name that is not there.
    """
    with _lock:
        execute = vars(module).pop(_EXECUTE, None)
        module.__class__ = ModuleType
        if execute is None:
            return
        before = set(vars(module))
        try:
            execute()
        except BaseException as error:
            for name in set(vars(module)) - before:
                if f"{module.__name__}.{name}" not in sys.modules:
                    del vars(module)[name]
            _defer(module, execute)
            if isinstance(error, AttributeError):
                message = f"{module.__name__} cannot be imported: {error}"
                raise ImportError(message, name=module.__name__) from error
            raise


def answer_without(library: str, answer: object, *names: str) -> Treatment:
    """Spare some functions of a module an import that only tells them what is known without it.

    Every pass through a model asks which of its layers are peft's and whether it is compiled. As
    long as nobody has imported peft or the compiler, none of them can be.
    """

    def load(module: ModuleType, execute: Callable[[], None]) -> None:
        execute()
        for name in names:
            if (real := getattr(module, name, None)) is not None:
                setattr(module, name, guarded(real))

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            return real(*args, **kwargs) if library in sys.modules else answer

        return call

    return load


TREATMENTS: dict[str, Treatment] = {
    "diffusers.models.autoencoders": _defer,
    "diffusers.models.transformers": _defer,
    "diffusers.utils.peft_utils": answer_without(
        "peft", None, "scale_lora_layers", "unscale_lora_layers"
    ),
}
