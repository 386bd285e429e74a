"""Stand-ins for modules, functions and classes, which import what they stand for when used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


class LaterModule(ModuleType):
    """Stands for a module that is imported when something is asked of it.

    Args:
        name: of the module.
        attributes: further stand-ins, for names that are asked for at once.
    """

    def __init__(self, name: str, attributes: Mapping[str, object]) -> None:
        super().__init__(name)
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def later_function(module: str, name: str) -> Callable[..., Any]:
    """Calls what it stands for, and imports that first."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    call.__name__ = name
    return call


class LaterClass(type):
    """Makes classes to ask `isinstance` about: nothing is one of a class that nobody imported.

    Called as `LaterClass(name, (), {"home": module})`.
    """

    def __instancecheck__(cls, instance: object) -> bool:
        real = cls._loaded()
        return real is not None and isinstance(instance, real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        real = cls._loaded()
        return real is not None and issubclass(subclass, real)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(vars(cls)["home"]), cls.__name__)(*args, **kwargs)

    def _loaded(cls) -> Any:
        return getattr(sys.modules.get(vars(cls)["home"]), cls.__name__, None)
