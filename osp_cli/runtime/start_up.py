"""Imports of the heavy libraries without those parts of them that a run does not touch.

diffusers and transformers import at once what only some runs need: torch's compiler, peft, scipy,
every model they know. Half of the time before the first step was spent on that. Neither has a
switch for it, so `light_imports` steps in between while they are imported:

- An `import` statement of `_NOT_YET` binds a stand-in, which fetches the real thing on first use.
- `_DEFERRED_PACKAGES` run their `__init__` when something is asked of them, not before.
- transformers reads the source of all its models to list their names; that, too, waits until a
  name is asked for that is not known without the list.
- `torch.compiler.disable` marks functions without importing the compiler, as nothing can be
  compiling until somebody else has imported it.
- The garbage collector rests: what is imported stays, and it would walk through that many times.

Nothing is replaced in `sys.modules`: whoever imports peft, scipy or the compiler outside gets them,
and when the compiler comes, everything that should have been told to it is. Where a library turns
out to be arranged otherwise than thought, its import takes as long as without this module.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import gc
import importlib
import importlib.metadata
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"

_DEFERRED_PACKAGES = frozenset({"diffusers.models.autoencoders", "diffusers.models.transformers"})

_lock = threading.RLock()
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
    import torch.compiler

    finder = _DeferringFinder()
    packages = _LaterPackages(importlib.metadata.packages_distributions)
    collecting = gc.isenabled()
    gc.disable()
    sys.meta_path.insert(0, finder)
    if _COMPILER not in sys.modules:
        # Some decorate with `@torch._dynamo...`, which imports it as well.
        torch._dynamo = _COMPILER_STAND_IN
    try:
        with (
            _replaced(builtins, "__import__", functools.partial(_import, builtins.__import__)),
            _replaced(torch.compiler, "allow_in_graph", _allow_in_graph),
            _replaced(torch.compiler, "assume_constant_result", _assume_constant_result),
            _replaced(torch.compiler, "disable", _disable),
            _replaced(
                importlib.metadata,
                "packages_distributions",
                lambda: packages,
            ),
        ):
            yield
    finally:
        if vars(torch).get("_dynamo") is _COMPILER_STAND_IN:
            del torch._dynamo
        sys.meta_path.remove(finder)
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# --- Stand-ins for what an import statement asks for ------------------------------------------


class _LaterModule(ModuleType):
    """Stands for a module that is imported when something is asked of it.

    Args:
        name: of the module.
        attributes: further stand-ins, for names that are asked for at once.
        unless: a module which, once imported, makes the stand-in pointless; by default its own.
    """

    def __init__(self, name: str, attributes: Mapping[str, object], unless: str = "") -> None:
        super().__init__(name)
        vars(self).update(attributes, unless=unless or name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


class _LaterPackages(Mapping[str, list[str]]):
    """What `importlib.metadata.packages_distributions` says, read when somebody looks into it.

    Both libraries ask for it first thing, which reads the metadata of all that is installed; then
    they look up what has another name than its package, like optimum, if that is there.
    """

    def __init__(self, read: Callable[[], Mapping[str, list[str]]]) -> None:
        self._read = functools.cache(read)

    def __getitem__(self, name: str) -> list[str]:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


def _later_function(module: str, name: str) -> Callable[..., Any]:
    """Calls what it stands for, and imports that first."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    call.__name__ = name
    return call


class _LaterClassType(type):
    """Nothing is an instance of a class that nobody has imported."""

    def __instancecheck__(cls, instance: object) -> bool:
        real = cls._loaded()
        return real is not None and isinstance(instance, real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        real = cls._loaded()
        return real is not None and issubclass(subclass, real)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def _real(cls) -> Any:
        return getattr(importlib.import_module(vars(cls)["home"]), cls.__name__)

    def _loaded(cls) -> Any:
        return getattr(sys.modules.get(vars(cls)["home"]), cls.__name__, None)


def _functions(module: str, *names: str) -> _LaterModule:
    return _LaterModule(module, {name: _later_function(module, name) for name in names})


def _classes(module: str, *names: str, package: str = "") -> _LaterModule:
    classes = {name: _LaterClassType(name, (), {"home": module}) for name in names}
    return _LaterModule(package or module, classes, unless=module)


_waiting_for_compiler: list[Any] = []


def _allow_in_graph(fn: Any) -> Any:
    """`torch._dynamo.allow_in_graph`, told to the compiler once there is one."""
    if _COMPILER in sys.modules:
        return sys.modules[_COMPILER].allow_in_graph(fn)
    if not any(isinstance(finder, _CompilerWatch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CompilerWatch())
    _waiting_for_compiler.append(fn)
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


_INDEX_MODE = f"{_COMPILER}._trace_wrapped_higher_order_op"
_COMPILER_STAND_IN = _LaterModule(
    _COMPILER,
    {
        "allow_in_graph": _allow_in_graph,
        "assume_constant_result": _assume_constant_result,
        "disable": _disable,
    },
)
_COMPILER_STAND_INS = {
    _COMPILER: _COMPILER_STAND_IN,
    _INDEX_MODE: _functions(_INDEX_MODE, "TransformGetItemToIndex"),
}
_PEFT_STAND_INS = {
    "peft.helpers": _functions("peft.helpers", "disable_input_dtype_casting"),
    "peft.tuners.tuners_utils": _classes("peft.tuners.tuners_utils", "BaseTunerLayer"),
}
_SCIPY_STAND_IN = _LaterModule(
    "scipy",
    {name: _LaterModule(f"scipy.{name}", {}) for name in ("integrate", "stats")},
)
_SCIPY_STAND_INS = {
    # `import scipy.stats` binds the package.
    "scipy": _SCIPY_STAND_IN,
    "scipy.stats": _SCIPY_STAND_IN,
    "scipy.optimize": _functions("scipy.optimize", "linear_sum_assignment"),
}
_SHARDING_STAND_INS = {
    "torch.distributed._composable.fsdp": _functions(
        "torch.distributed._composable.fsdp", "fully_shard"
    ),
    "torch.distributed.checkpoint.hf_storage": _classes(
        "torch.distributed.checkpoint.hf_storage",
        "HuggingFaceStorageReader",
        "HuggingFaceStorageWriter",
    ),
    "torch.distributed.fsdp": _classes(
        "torch.distributed.fsdp", "CPUOffloadPolicy", "MixedPrecisionPolicy"
    ),
}
_IMAGE_PROCESSOR_STAND_INS = {
    "transformers": _classes(
        "transformers.models.auto.image_processing_auto",
        "AutoImageProcessor",
        package="transformers",
    )
}

# Who imports what for another day. Names that end in a dot stand for all modules below.
_NOT_YET: dict[str, dict[str, _LaterModule]] = {
    "diffusers.hooks.layerwise_casting": _PEFT_STAND_INS,
    "diffusers.loaders.lora_base": _PEFT_STAND_INS,
    "diffusers.loaders.single_file_utils": _IMAGE_PROCESSOR_STAND_INS,
    "diffusers.schedulers.": _SCIPY_STAND_INS,
    "diffusers.utils.torch_utils": _COMPILER_STAND_INS,
    "torch._compile": _COMPILER_STAND_INS,
    "transformers.distributed.checkpoint": _SHARDING_STAND_INS,
    "transformers.distributed.fsdp": _SHARDING_STAND_INS,
    "transformers.loss.": _SCIPY_STAND_INS,
    "transformers.masking_utils": _COMPILER_STAND_INS,
}


def _import(
    real: Callable[..., Any],
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """`builtins.__import__`, with a stand-in for what the importing module does not need yet."""
    importer = globals.get("__name__", "") if globals is not None else ""
    # Others make most of the import statements: let them through quickly.
    if importer.startswith(("diffusers.", "transformers.", "torch._compile")):
        stand_ins = _NOT_YET.get(importer) or _NOT_YET.get(importer.rpartition(".")[0] + ".", {})
        wanted = importer.rsplit(".", level)[0] + "." + name if level else name
        stand_in = stand_ins.get(wanted)
        if stand_in is not None and vars(stand_in)["unless"] not in sys.modules:
            # `import a.b` binds `a`, and finds its stand-in for `b` there.
            return stand_in if fromlist else sys.modules.get(name.partition(".")[0], stand_in)
    return real(name, globals, locals, fromlist, level)


# --- The compiler -----------------------------------------------------------------------------


class _CompilerWatch(MetaPathFinder):
    """Waits for the compiler's import, to tell it what it has missed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _COMPILER:
            return None
        sys.meta_path.remove(self)
        return _with_loader(_spec_of_others(self, fullname, path, target), self._load)

    @staticmethod
    def _load(module: ModuleType, execute: Callable[[], None]) -> None:
        execute()
        for fn in _waiting_for_compiler:
            module.allow_in_graph(fn)
        _waiting_for_compiler.clear()
        # Compiled code must meet the real things: a stand-in would be a hole in its graph.
        for importer in [name for name, what in _NOT_YET.items() if what is _COMPILER_STAND_INS]:
            bound = vars(sys.modules.get(importer, ModuleType(importer)))
            for home, stand_in in _COMPILER_STAND_INS.items():
                for name, value in vars(stand_in).items():
                    for key in [key for key, it in bound.items() if it is value and callable(it)]:
                        bound[key] = getattr(importlib.import_module(home), name)


# --- Packages that run later ------------------------------------------------------------------


class _DeferringFinder(MetaPathFinder):
    """Finds what others find, and has some of it loaded in another way."""

    def __init__(self) -> None:
        self._treatments: dict[str, Callable[[ModuleType, Callable[[], None]], None]] = {
            _IMPORT_UTILS: _load_import_utils,
            "diffusers.utils.peft_utils": _answer_without(
                "peft", None, "scale_lora_layers", "unscale_lora_layers"
            ),
            "diffusers.utils.torch_utils": _answer_without(_COMPILER, False, "is_compiled_module"),
            "transformers": _load_without_list,
            "transformers.models": _load_without_list,
            **dict.fromkeys(_DEFERRED_PACKAGES, _defer),
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        treatment = self._treatments.get(fullname)
        if treatment is None:
            return None
        return _with_loader(_spec_of_others(self, fullname, path, target), treatment)


def _spec_of_others(
    finder: MetaPathFinder, name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    for other in sys.meta_path:
        if other is not finder and (spec := other.find_spec(name, path, target)) is not None:
            return spec
    return None


class _TreatedLoader(Loader):
    def __init__(
        self, real: Loader, treatment: Callable[[ModuleType, Callable[[], None]], None]
    ) -> None:
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


def _with_loader(
    spec: ModuleSpec | None, treatment: Callable[[ModuleType, Callable[[], None]], None]
) -> ModuleSpec | None:
    if spec is not None and spec.loader is not None:
        spec.loader = _TreatedLoader(spec.loader, treatment)
    return spec


class _DeferredPackage(ModuleType):
    """A package whose submodules can be imported, and whose own code runs when it is asked."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        _run_deferred(self)
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        _run_deferred(self)
        return dir(self)


def _defer(module: ModuleType, execute: Callable[[], None]) -> None:
    vars(module)["_osp_execute"] = execute
    module.__class__ = _DeferredPackage


def _run_deferred(module: ModuleType) -> None:
    with _lock:
        execute = vars(module).pop("_osp_execute", None)
        module.__class__ = ModuleType
        if execute is not None:
            execute()


def _answer_without(
    library: str, answer: object, *names: str
) -> Callable[[ModuleType, Callable[[], None]], None]:
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


# --- The list of names in transformers --------------------------------------------------------

_IMPORT_UTILS = "transformers.utils.import_utils"
# Folder of models -> what to do instead of reading it.
_unread: dict[Path, Callable[[Callable[[], Any]], Any]] = {}


def _route_lists(module: ModuleType) -> None:
    """Have transformers ask us, before it reads the sources of a folder for names."""
    real = module.define_import_structure

    @functools.wraps(real)
    def define_import_structure(module_path: Any, *args: Any, **kwargs: Any) -> Any:
        path = Path(module_path)
        instead = _unread.get(path.parent if path.suffix else path)
        if instead is None:
            return real(module_path, *args, **kwargs)
        return instead(functools.partial(real, module_path, *args, **kwargs))

    module.define_import_structure = define_import_structure  # type: ignore[attr-defined]
    again = module.direct_transformers_import

    @functools.wraps(again)
    def direct_transformers_import(path: Any, file: str = "__init__.py") -> ModuleType:
        present = sys.modules.get("transformers")
        # Loaded from that very file, it would come out the same.
        if present is not None and Path(str(present.__file__)) == Path(path) / file:
            return present
        return again(path, file)

    module.direct_transformers_import = direct_transformers_import  # type: ignore[attr-defined]


def _load_import_utils(module: ModuleType, execute: Callable[[], None]) -> None:
    execute()
    with contextlib.suppress(AttributeError):
        _route_lists(module)


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
    except Exception:  # noqa: BLE001 - whatever it was, it may be our doing
        readers.clear()
    finally:
        del _unread[folder]
    lazy = sys.modules[module.__name__]
    try:
        [read] = readers
        _make_partial(lazy, read, names)
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
            lazy.__class__ = complete_class
            everything = read()
            everything.setdefault(frozenset(), {}).update(names[frozenset()])
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
            complete()
            return getattr(self, name)

        def __dir__(self) -> list[str]:
            complete()
            return dir(self)

    # Its absence sends `from transformers import *` through `__getattr__`.
    del lazy.__all__
    lazy.__class__ = PartialModule
