"""What needs a package that is not there is refused before torch is."""

from __future__ import annotations

from pathlib import Path

import pytest

from osp_cli.errors import InvalidRequestError
from osp_cli.requests import GenerateRequest
from osp_cli.runtime import packages
from osp_cli.runtime.packages import check_packages


def request(**changes):
    return GenerateRequest(image=Path("x.png"), seed=1, model="flashi2v-1.3b", **changes)


@pytest.mark.parametrize(
    ("flag", "value", "package", "instead"),
    [
        ("quant", "int8", "torchao", "fp8"),
        ("quant", "nf4", "bitsandbytes", "fp8"),
        ("quant", "gguf", "gguf", "fp8"),
        ("attention", "flash", "flash-attn", "sdpa"),
        ("attention", "sage", "sageattention", "sdpa"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, flag, value, package, instead):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequestError) as refused:
        check_packages(request(**{flag: value}))
    assert refused.value.message == f"--{flag} {value} needs the package {package}"
    assert refused.value.hint == f"pip install {package}, or --{flag} {instead}"
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: object())
    check_packages(request(**{flag: value}))


def test_what_needs_none_is_let_pass(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    for changes in ({}, {"quant": "fp8"}, {"quant": "none"}, {"attention": "sdpa"}):
        check_packages(request(**changes))
