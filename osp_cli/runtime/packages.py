"""Packages that only some settings need, looked for before anything heavy is imported."""

from __future__ import annotations

import importlib.util

from osp_cli.errors import InvalidRequestError
from osp_cli.requests import GenerateRequest

# By flag and value: the module, and what pip calls it.
_NEEDED = {
    ("quant", "int8"): ("torchao", "torchao"),
    ("quant", "nf4"): ("bitsandbytes", "bitsandbytes"),
    ("quant", "gguf"): ("gguf", "gguf"),
    ("attention", "flash"): ("flash_attn", "flash-attn"),
    ("attention", "sage"): ("sageattention", "sageattention"),
}
_INSTEAD = {"quant": "fp8", "attention": "sdpa"}


def check_packages(request: GenerateRequest) -> None:
    """Refuse settings whose package is missing.

    Raises:
        InvalidRequestError: the message names the package.
    """
    for flag, value in (("quant", request.quant), ("attention", request.attention)):
        module, package = _NEEDED.get((flag, value), ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise InvalidRequestError(
                f"--{flag} {value} needs the package {package}",
                hint=f"pip install {package}, or --{flag} {_INSTEAD[flag]}",
            )
