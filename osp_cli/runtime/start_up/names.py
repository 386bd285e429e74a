"""The list of all names in transformers, made when a name is asked for that needs it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# What diffusers takes from the root of transformers for another day -> where that finds it.
_HOMES = {"AutoImageProcessor": "models.auto.image_processing_auto"}

_lock = threading.RLock()
# Folder of models -> what to do instead of reading it.
_unread: dict[Path, Callable[[Callable[[], Any]], Any]] = {}


def _load_import_utils(module: ModuleType, execute: Callable[[], None]) -> None:
    execute()
    with contextlib.suppress(AttributeError):
        _route_lists(module)


def _route_lists(module: ModuleType) -> None:
    """Have transformers ask us, before it reads the sources of a folder for names.

    Raises:
        AttributeError: it goes about that in another way.
    """
    real, again = module.define_import_structure, module.direct_transformers_import

    @functools.wraps(real)
    def define_import_structure(module_path: Any, *args: Any, **kwargs: Any) -> Any:
        path = Path(module_path)
        instead = _unread.get(path.parent if path.suffix else path)
        if instead is None:
            return real(module_path, *args, **kwargs)
        return instead(functools.partial(real, module_path, *args, **kwargs))

    @functools.wraps(again)
    def direct_transformers_import(path: Any, file: str = "__init__.py") -> ModuleType:
        present = sys.modules.get("transformers")
        # Loaded from that very file, it would come out the same.
        if present is not None and Path(str(present.__file__)) == Path(path) / file:
            return present
        return again(path, file)

    module.define_import_structure = define_import_structure  # type: ignore[attr-defined]
    module.direct_transformers_import = direct_transformers_import  # type: ignore[attr-defined]


def _load_without_list(module: ModuleType, execute: Callable[[], None]) -> None:
    """Run the `__init__` of transformers, or of its models, with an empty list of models."""
    folder = Path(str(module.__file__)).parent
    if module.__name__ == "transformers":
        folder /= "models"
    names: dict[frozenset[str], dict[str, Any]] = {frozenset(): {}}
    readers: list[Callable[[], Any]] = []

    def instead(read: Callable[[], Any]) -> Any:
        readers.append(read)
        return names

    _unread[folder] = instead
    try:
        execute()
    except Exception:
        if not readers:
            raise
        # It may be our doing.
        readers.clear()
    else:
        if not readers:
            return
    finally:
        del _unread[folder]
    try:
        [read] = readers
        _make_partial(sys.modules[module.__name__], read, names)
    except (ValueError, AttributeError):
        # Arranged in a way that we do not know: loaded again, as if we were not here.
        sys.modules[module.__name__] = module
        execute()


def _make_partial(
    lazy: Any, read: Callable[[], Any], names: dict[frozenset[str], dict[str, Any]]
) -> None:
    """Make transformers' lazy module complete itself when an unknown name is asked of it.

    Raises:
        AttributeError: it is no such module.
    """
    complete_class = type(lazy)
    known = {*lazy._objects, *lazy._class_to_module, *lazy._modules}
    folder = Path(lazy.__file__).parent

    def complete() -> None:
        with _lock:
            if type(lazy) is complete_class:
                return
            everything = read()
            everything.setdefault(frozenset(), {}).update(names[frozenset()])
            lazy.__class__ = complete_class
            complete_class.__init__(
                lazy,
                lazy.__name__,
                lazy.__file__,
                everything,
                module_spec=lazy.__spec__,
                extra_objects=lazy._objects,
            )

    class PartialModule(complete_class):  # type: ignore[misc,valid-type]
        def __getattr__(self, name: str) -> Any:
            if name in known:
                return super().__getattr__(name)
            if name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            if (folder / name).is_dir() or (folder / f"{name}.py").is_file():
                return importlib.import_module(f"{self.__name__}.{name}")
            if name in _HOMES:
                with contextlib.suppress(ImportError, AttributeError):
                    return getattr(importlib.import_module(f"transformers.{_HOMES[name]}"), name)
            complete()
            return getattr(self, name)

        def __dir__(self) -> list[str]:
            complete()
            return dir(self)

    # Its absence sends `from transformers import *` through `__getattr__`.
    del lazy.__all__
    lazy.__class__ = PartialModule


TREATMENTS = {
    "transformers": _load_without_list,
    "transformers.models": _load_without_list,
    "transformers.utils.import_utils": _load_import_utils,
}
