"""Import statements that bind a stand-in, and the list of who imports what for another day."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from osp_cli.runtime.start_up import compiler
from osp_cli.runtime.start_up.stand_ins import LaterClass, LaterModule, later_function

_PEFT_STAND_INS = {
    "peft.helpers": LaterModule(
        "peft.helpers",
        {
            "disable_input_dtype_casting": later_function(
                "peft.helpers", "disable_input_dtype_casting"
            )
        },
    ),
    "peft.tuners.tuners_utils": LaterModule(
        "peft.tuners.tuners_utils",
        {"BaseTunerLayer": LaterClass("BaseTunerLayer", (), {"home": "peft.tuners.tuners_utils"})},
    ),
}

# Importing module -> what it imports -> what it gets instead.
NOT_YET: dict[str, Mapping[str, LaterModule]] = {
    "diffusers.hooks.layerwise_casting": _PEFT_STAND_INS,
    "diffusers.loaders.lora_base": _PEFT_STAND_INS,
    **dict.fromkeys(compiler.IMPORTERS, compiler.STAND_INS),
}


def import_or_stand_in(
    real: Callable[..., Any],
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """`builtins.__import__`, with a stand-in for what the importing module does not need yet."""
    if globals is not None and not level:
        stand_in = NOT_YET.get(globals.get("__name__", ""), {}).get(name)
        if stand_in is not None and name not in sys.modules:
            # `import a.b` binds `a`.
            return stand_in if fromlist else real(name.partition(".")[0], globals, locals)
    return real(name, globals, locals, fromlist, level)
