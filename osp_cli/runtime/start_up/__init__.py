"""Imports of the heavy libraries without those parts of them that a run does not touch.

diffusers and transformers import at once what only some runs need: torch's compiler, peft, every
model they know. Half of the time before the first step was spent on that. Neither has a switch for
it, so `light_imports` steps in between while they are imported. Each of its measures has a file:

- `statements`: an `import` of peft or the compiler binds a stand-in (`stand_ins`), which fetches
  the real thing on first use.
- `compiler`: `torch.compiler.disable` marks functions without importing the compiler, as nothing
  can be compiling until somebody else has imported it.
- `deferred`: packages run their `__init__` when something is asked of them, not before.
- `names`: transformers reads the source of all its models to list their names; that, too, waits
  until a name is asked for that is not known without the list.

Besides, the garbage collector rests: what is imported stays, and it would walk through that many
times. And both libraries share what they read about the packages that are installed.

Nothing is replaced in `sys.modules`: whoever imports peft or the compiler outside gets them, and
when the compiler comes, everything that should have been told to it is. Where a library turns out
to be arranged otherwise than thought, its import takes as long as without this package.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import gc
import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Iterator
from typing import Any

from osp_cli.runtime.start_up import compiler, deferred, names, statements
from osp_cli.runtime.start_up.loaders import TreatingFinder

_lock = threading.Lock()
_depth = 0


@contextlib.contextmanager
def light_imports(*, for_good: bool = False) -> Iterator[None]:
    """Within this block, imports of diffusers and transformers leave out what is not wanted yet.

    It may be nested. Import statements of other threads go through it meanwhile, and the garbage
    collector rests for them too.

    Args:
        for_good: whether the garbage collector may pass over all that there is at the end of the
            block for as long as the process lives. Not where models are loaded already, which
            would then stay in memory.
    """
    global _depth
    with _lock:
        outermost, _depth = _depth == 0, _depth + 1
    try:
        with _all_measures() if outermost else contextlib.nullcontext():
            yield
        if for_good:
            gc.freeze()
    finally:
        with _lock:
            _depth -= 1


def transformers_class(module: str, name: str) -> Any:
    """A class of transformers, taken from the module that it is in.

    The library's root, which promises the name, would have to look for it in all models' sources.

    Args:
        module: below `transformers`. Where it is not there in some version, the root is asked.
    """
    with light_imports():
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(f"transformers.{module}"), name)
        return getattr(importlib.import_module("transformers"), name)


@contextlib.contextmanager
def _all_measures() -> Iterator[None]:
    finder = TreatingFinder({**compiler.TREATMENTS, **deferred.TREATMENTS, **names.TREATMENTS})
    with (
        _collector_resting(),
        _replaced(
            importlib.metadata,
            "packages_distributions",
            functools.cache(importlib.metadata.packages_distributions),
        ),
        compiler.kept_out(),
        _first_finder(finder),
        _replaced(
            builtins,
            "__import__",
            functools.partial(statements.import_or_stand_in, builtins.__import__),
        ),
    ):
        yield


@contextlib.contextmanager
def _collector_resting() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _first_finder(finder: TreatingFinder) -> Iterator[None]:
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(finder)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
