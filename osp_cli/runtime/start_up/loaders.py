"""Modules that others find and load, with something done before or after their code runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Gets an empty module, and a function that runs its code in it.
Treatment = Callable[[ModuleType, Callable[[], None]], None]


class TreatingFinder(MetaPathFinder):
    """Finds what others find, and has some of it loaded in another way."""

    def __init__(self, treatments: Mapping[str, Treatment]) -> None:
        self._treatments = treatments

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        treatment = self._treatments.get(fullname)
        if treatment is None:
            return None
        for other in sys.meta_path:
            if other is not self and (spec := other.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _TreatedLoader(spec.loader, treatment)
                return spec
        return None


class _TreatedLoader(Loader):
    def __init__(self, real: Loader, treatment: Treatment) -> None:
        self._real = real
        self._treatment = treatment

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module must not remember how it was loaded: others read sources through its loader.
        module.__loader__ = self._real
        assert module.__spec__ is not None
        module.__spec__.loader = self._real
        self._treatment(module, lambda: self._real.exec_module(module))
