"""What a run leaves unimported, and that all of it is there when somebody wants it.

Each test asks a fresh interpreter for its `sys.modules`: in this one, other tests have been.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import osp_cli
from osp_cli.runtime.start_up import light_imports, transformers_class

ROOT = Path(osp_cli.__file__).parent.parent

# Seconds of import that generating a clip needs nothing of.
UNUSED = [
    "torch._dynamo",
    "torch._inductor",
    "peft",
    "diffusers.models.autoencoders.autoencoder_kl_wan",
    "diffusers.models.transformers.sana_transformer",
    "transformers.models.bloom.modeling_bloom",
]

LIGHT = """
from osp_cli.runtime.start_up import light_imports
with light_imports():
    import osp_cli.runtime.runner
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
"""


def answer(code: str, folder: Path, *args: str) -> object:
    """What `code` assigns to `answer` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(answer))", *args],
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            "OSP_HOME": str(folder / "home"),
            "HF_HOME": str(folder / "hf"),
            "OMP_NUM_THREADS": "1",
            "PATH": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


GENERATE = """
import sys
from osp_cli.cli.app import main
code = main(["generate", "photo.png", "waves", "--seed", "1", "--frames", "5", "--steps", "1",
             "--size", "256x256", "-q", "-o", sys.argv[1]])
assert code == 0, code
"""


@pytest.fixture
def lazy_torch(tmp_path):
    """A torch whose own parts, as transformers imports them, leave its compiler out."""
    code = """
import sys
import torch.distributed.tensor.parallel, torch.nn.attention.flex_attention
answer = "torch._dynamo" in sys.modules
"""
    if answer(code, tmp_path):
        pytest.skip("parts of this torch import its compiler")


@pytest.fixture
def photo_folder(tmp_path):
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path


def test_a_whole_run_imports_nothing_that_it_does_not_use(photo_folder, lazy_torch):
    code = f"""{GENERATE}
import sys
names = vars(sys.modules["transformers"])["_class_to_module"]
answer = [[name for name in {UNUSED!r} if name in sys.modules], "BertModel" in names]
"""
    assert answer(code, photo_folder, "clip.mp4") == [[], False]


def test_the_list_of_what_is_unused_names_what_exists():
    for name in UNUSED:
        assert importlib.util.find_spec(name) is not None


@pytest.mark.slow
def test_the_clip_has_the_same_bytes_with_and_without(photo_folder, lazy_torch):
    heavy = "import contextlib, osp_cli.runtime.start_up as it\nit.light_imports = "
    heavy += "lambda **_: contextlib.nullcontext()\n"
    check = "\nanswer = 'torch._dynamo' in sys.modules"
    assert answer(GENERATE + check, photo_folder, "light.mp4") is False
    assert answer(heavy + GENERATE + check, photo_folder, "heavy.mp4") is True
    light, full = ((photo_folder / name).read_bytes() for name in ("light.mp4", "heavy.mp4"))
    assert light == full


def test_nothing_is_left_behind(tmp_path, lazy_torch):
    code = """
import builtins, gc, importlib.metadata, sys
import torch.compiler
before = [builtins.__import__, torch.compiler.disable, torch.compiler.allow_in_graph,
          torch.compiler.assume_constant_result, importlib.metadata.packages_distributions]
from osp_cli.runtime.start_up import light_imports
with light_imports():
    with light_imports():
        import diffusers.models.transformers.transformer_wan
    assert not gc.isenabled()
    assert before[0] is not builtins.__import__
after = [builtins.__import__, torch.compiler.disable, torch.compiler.allow_in_graph,
         torch.compiler.assume_constant_result, importlib.metadata.packages_distributions]
from osp_cli.runtime.start_up.loaders import TreatingFinder
def ours():
    return sum(isinstance(it, TreatingFinder) for it in sys.meta_path)
answer = [before == after, gc.isenabled(), "_dynamo" in vars(torch), ours()]
import torch._dynamo
answer.append(ours())
"""
    # One finder stays for the compiler's sake, and goes when it comes.
    assert answer(code, tmp_path) == [True, True, False, 1, 0]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_inside_leaves_nothing_behind(error):
    import torch.compiler

    real_import, finders, disable = __import__, list(sys.meta_path), torch.compiler.disable
    with pytest.raises(error), light_imports():
        raise error
    assert __import__ is real_import
    assert torch.compiler.disable is disable
    assert sys.meta_path == finders
    assert gc.isenabled()


def test_an_interrupted_import_can_be_made_again(tmp_path):
    code = """
import builtins, gc, sys
from importlib.abc import MetaPathFinder
from osp_cli.runtime.start_up import compiler, light_imports
class Interrupt(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "transformers.models.umt5.modeling_umt5":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt
real_import = builtins.__import__
sys.meta_path.insert(0, Interrupt())
answer = []
try:
    with light_imports():
        import transformers.models.umt5.modeling_umt5
except KeyboardInterrupt:
    left = [it for it in sys.meta_path if type(it).__module__.startswith("osp_cli")]
    answer += [builtins.__import__ is real_import, gc.isenabled(), left in ([], [compiler._watch])]
with light_imports():
    import transformers.models.umt5.modeling_umt5 as module
answer += [module.UMT5EncoderModel.__name__]
"""
    assert answer(code, tmp_path) == [True, True, True, "UMT5EncoderModel"]


def test_an_error_of_a_deferred_package_is_told_each_time_it_is_asked(tmp_path):
    package = tmp_path / "late"
    package.mkdir()
    (package / "part.py").write_text("value = 1\n")
    (package / "__init__.py").write_text(
        "from .part import value\nhalf = 2\nimport no_such_library\n"
    )
    code = """
import sys
from osp_cli.runtime.start_up.deferred import _defer
from osp_cli.runtime.start_up.loaders import TreatingFinder
sys.path.insert(0, ".")
sys.meta_path.insert(0, TreatingFinder({"late": _defer}))
import late.part
answer = [late.part.value]
for _ in range(2):
    try:
        from late import half
    except ModuleNotFoundError as error:
        answer += [error.name, "half" in vars(late)]
sys.modules["no_such_library"] = sys
from late import half
answer += [half, "_osp_execute" in vars(late)]
"""
    expected = [1, "no_such_library", False, "no_such_library", False, 2, False]
    assert answer(code, tmp_path) == expected


def test_compiling_knows_all_that_it_was_not_told(tmp_path, lazy_torch):
    code = f"""{LIGHT}
import sys
import torch
with light_imports():
    compiling = []
    @torch.compiler.disable
    def untraced(x):
        compiling.append(torch.compiler.is_compiling())
        return x + 1
    @torch.compiler.disable(recursive=False)
    def also_untraced(x):
        compiling.append(torch.compiler.is_compiling())
        return x + 2
eager = float(untraced(torch.ones(())))
assert "torch._dynamo" not in sys.modules
traced = []
def function(x):
    traced.append(torch.compiler.is_compiling())
    return also_untraced(untraced(x * 2) * 3)
result = float(torch.compile(function, backend="eager")(torch.ones(())))
import diffusers.utils.torch_utils as diffusers_utils
import transformers.masking_utils as masking
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch._dynamo import trace_rules
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
answer = [
    eager, result, compiling, traced,
    diffusers_utils.maybe_allow_in_graph is torch._dynamo.allow_in_graph,
    masking.TransformGetItemToIndex is TransformGetItemToIndex,
    id(WanTransformerBlock) in trace_rules._allowed_callable_ids.function_ids,
    diffusers_utils.is_compiled_module(torch.compile(torch.nn.Identity())),
    diffusers_utils.is_compiled_module(torch.nn.Identity()),
]
"""
    expected = [2.0, 11.0, [False] * 3, [True], True, True, True, True, False]
    assert answer(code, tmp_path) == expected


TINY = """
import torch
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
torch.manual_seed(0)
model = FlashI2VTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=16,
    out_channels=16, text_dim=24, freq_dim=16, ffn_dim=32, num_layers=1)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
inputs = dict(hidden_states=torch.randn(1, 16, 1, 4, 4), timestep=torch.ones(1),
    encoder_hidden_states=torch.randn(1, 3, 24), fourier_features=torch.randn(1, 16, 1, 4, 4))
"""


def test_compiled_and_uncompiled_models_agree(tmp_path):
    code = f"""{LIGHT}{TINY}
with torch.no_grad():
    eager = model(**inputs).sample
    compiled = torch.compile(model, backend="eager")(**inputs).sample
answer = float((eager - compiled).abs().max())
"""
    assert answer(code, tmp_path) < 1e-5


def test_adapters_of_peft_are_found_scaled_and_trained(tmp_path):
    code = f"""{LIGHT}{TINY}
import sys
plain = model(**inputs).sample
assert "peft" not in sys.modules
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
outputs = [model(**inputs, attention_kwargs=dict(scale=scale)).sample for scale in (0.0, 0.5, 1.0)]
changes = [float((output - plain).abs().max()) for output in outputs]
outputs[-1].square().mean().backward()
layers = [it for it in model.modules() if isinstance(it, BaseTunerLayer)]
import diffusers.hooks.layerwise_casting as casting
trained = [name for name, it in model.named_parameters() if it.grad is not None]
answer = [
    changes[0] < 1e-6 < changes[1] < changes[2],
    len(layers) > 0 and all(isinstance(it, casting.BaseTunerLayer) for it in layers),
    isinstance(model, casting.BaseTunerLayer), issubclass(type(layers[0]), casting.BaseTunerLayer),
    len(trained) > 0 and all("lora_" in name for name in trained),
    casting.disable_input_dtype_casting(layers[0]) is not None,
]
"""
    assert answer(code, tmp_path) == [True, True, False, True, True, True]


def test_names_that_were_not_read_are_there_when_asked_for(tmp_path):
    light = f"""{LIGHT}
import sys
partial = "BertModel" in vars(sys.modules["transformers"])["_class_to_module"]
"""
    ask = """
import transformers, transformers.models
from diffusers.models.autoencoders import AutoencoderKL
from diffusers.models.transformers import FluxTransformer2DModel
import diffusers.models.transformers as group
from transformers import AutoImageProcessor, BertConfig
from transformers.models import bert
import diffusers.loaders.single_file_utils as single
answer = [sorted(transformers.__all__), sorted(transformers.models.__all__), sorted(dir(group)),
          BertConfig().model_type, bert.__name__, hasattr(transformers, "no_such_name"),
          single.AutoImageProcessor.from_pretrained.__qualname__]
"""
    partly = answer(f"{light}{ask}\nanswer += [partial]", tmp_path)
    assert isinstance(partly, list)
    assert partly.pop() is False
    assert partly == answer(ask, tmp_path)
    assert len(partly[0]) > 1000


@pytest.mark.parametrize(
    "surprise",
    [
        "names._make_partial = lambda *args: (_ for _ in ()).throw(AttributeError('other class'))",
        "names._route_lists = lambda module: (_ for _ in ()).throw(AttributeError('no such list'))",
        "names._HOMES = {'AutoImageProcessor': 'models.auto.elsewhere'}",
        "statements.NOT_YET.clear()",
        "deferred.TREATMENTS.clear()",
        "names.TREATMENTS.clear()",
        "import torch.compiler; del torch.compiler.assume_constant_result",
        "import torch._dynamo",
        "import transformers",
        "import transformers.modeling_utils",
        "import diffusers",
        "import diffusers.models.transformers.transformer_wan",
        "import peft",
    ],
)
def test_libraries_in_another_shape_or_there_already_are_imported_all_the_same(tmp_path, surprise):
    code = f"""
from osp_cli.runtime.start_up import compiler, deferred, names, statements
{surprise}
{LIGHT}{TINY}
import transformers
answer = [list(model(**inputs).sample.shape), transformers.BertConfig().model_type,
          transformers.AutoImageProcessor.__name__]
"""
    assert answer(code, tmp_path) == [[1, 16, 1, 4, 4], "bert", "AutoImageProcessor"]


def test_a_class_of_transformers_is_that_of_the_root():
    import transformers

    found = transformers_class("models.umt5.modeling_umt5", "UMT5EncoderModel")
    assert found is transformers.UMT5EncoderModel
    # As after a move to another module.
    assert transformers_class("models.umt5.elsewhere", "UMT5EncoderModel") is found
    assert transformers_class("models.umt5", "UMT5Config") is transformers.UMT5Config
