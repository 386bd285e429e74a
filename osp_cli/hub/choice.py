"""Which of the things that were found make a model, as its card asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from osp_cli.errors import CheckpointError, InvalidRequestError, OspError
from osp_cli.models import kinds
from osp_cli.models.layouts import UNKNOWN, FoundPart
from osp_cli.registry import ModelSpec

_TRANSFORMERS = {
    "flash-i2v": "flash-i2v",
    "wan-t2v": "wan-t2v",
    "wan-i2v": "wan-i2v",
    "helios": "diffusers:HeliosTransformer3DModel",
}
_VAES = {"AutoencoderKLWan": "wan-vae", "AutoencoderLinear": "linear-vae"}
# A card's number of parameters may leave out what a loader leaves out.
_MOST_DIFFERENCE = 0.25

ADVICE = {
    "transformer": "the transformer's weights (.safetensors, .pt or .gguf)",
    "vae": "Wan2.1_VAE.pth or a folder vae",
    "text_encoder": "the text encoder's weights",
    "tokenizer": "the tokenizer's folder",
    "image_encoder": "CLIP's weights or a folder image_encoder",
    "adapter": "the adapter's weights",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model is made of.

    Attributes:
        parts: by the folder that they make.
        notices: sentences about what was preferred to what.
        missing: parts for which nothing was found.
    """

    parts: dict[str, FoundPart] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def choose(spec: ModelSpec, found: Sequence[FoundPart], *, ema: bool = True) -> Choice:
    """For each part of the card the one thing that fits it.

    Args:
        ema: prefer weights averaged over the training to those of its last step.

    Raises:
        InvalidRequestError: there is something, but of another model, or more than one thing fits.
        CheckpointError: what fits is not whole.
    """
    choice = Choice()
    for part in spec.parts:
        candidates = [one for one in found if one.part == _found_as(part)]
        fitting = [one for one in candidates if not misfit(spec, part, one)]
        if fitting:
            choice.parts[part] = replace(_best(spec, part, fitting, ema, choice.notices), part=part)
        elif candidates:
            raise _wrong(spec, part, candidates)
        else:
            choice.missing.append(part)
    _add_tokenizer(spec, found, choice)
    _add_processor(choice)
    _check_widths(spec, choice.parts)
    return choice


def misfit(spec: ModelSpec, part: str, found: FoundPart) -> str:
    """Why something cannot be this part of a model, in words; empty where it can."""
    accepted = _accepted_kinds(spec, part)
    if accepted and found.kind not in accepted:
        return f"{found.title}, not {kinds.title(accepted[0], {})}"
    settings, sizes = found.settings, spec.architecture
    if part == "transformer" and sizes is not None and "num_layers" in settings:
        width = settings["num_attention_heads"] * settings["attention_head_dim"]
        if (settings["num_layers"], width) != (sizes.layers, sizes.width):
            return f"{found.title}, not one with {sizes.layers} layers of width {sizes.width}"
    channels = settings.get("out_channels") if part == "transformer" else settings.get("z_dim")
    if channels is not None and channels != spec.latent_channels:
        return f"{found.title} for {channels} latent channels, not {spec.latent_channels}"
    needs_eyes = found.kind == "qwen2.5-vl" and spec.conditioner == "qwen2.5-vl"
    if needs_eyes and not kinds.has_vision(found.tensors):
        return f"{found.title} without the half that sees"
    if part == "image_adapter" or (part == "adapter" and "image_adapter" in spec.parts):
        is_for_images = settings.get("in_features") == _image_token_width(spec)
        if is_for_images != (part == "image_adapter"):
            return f"{found.title}, which is the other adapter's"
    expected = (sizes.parameters if sizes else {}).get(part, 0)
    # Of what is incomplete the keys say more; a language model may come without its head.
    is_sized = expected > 0 and found.complete and part != "transformer"
    if is_sized and abs(found.parameters / expected - 1) > _MOST_DIFFERENCE:
        billions = f"{found.parameters / 1e9:.2f} B parameters, not {expected / 1e9:.2f} B"
        return f"{found.title} with {billions}"
    return ""


def missing_sentence(spec: ModelSpec, missing: Sequence[str]) -> str:
    """What to add, in words."""
    advice = dict(ADVICE)
    if spec.conditioner == "umt5":
        advice["text_encoder"] = "models_t5_umt5-xxl-enc-bf16.pth or a folder text_encoder"
        advice["tokenizer"] = "the folder google/umt5-xxl of the tokenizer"
    elif "qwen" in spec.conditioner:
        advice["text_encoder"] = "Qwen2.5-VL's folder with its config.json"
    return "add " + ", ".join(advice.get(part, f"a folder {part}") for part in missing)


def _found_as(part: str) -> str:
    # By their keys both are adapters.
    return "adapter" if part == "image_adapter" else part


def _accepted_kinds(spec: ModelSpec, part: str) -> tuple[str, ...]:
    """The kinds that a part may be; empty where any may."""
    text = "umt5" if spec.conditioner == "umt5" else "qwen2.5-vl"
    known = {
        "transformer": (_TRANSFORMERS.get(spec.pipeline, ""),),
        "vae": (_VAES.get(spec.vae_class, ""),),
        "text_encoder": (text,),
        "tokenizer": (f"{text}-tokenizer", "tokenizer"),
    }.get(part, ())
    return tuple(kind for kind in known if kind)


def _best(
    spec: ModelSpec, part: str, fitting: list[FoundPart], ema: bool, notices: list[str]
) -> FoundPart:
    whole = [one for one in fitting if one.complete]
    if not whole:
        one = fitting[0]
        raise CheckpointError(f"{one.title} in {one.path} is not whole: {one.incompleteness}")
    wanted, other = ("ema", "raw") if ema else ("raw", "ema")
    branches = {one.branch for one in whole}
    if {wanted, other} <= branches:
        whole = [one for one in whole if one.branch == wanted]
        words = {"ema": "weights averaged over the training", "raw": "those of its last step"}
        notices.append(f"the {part} has {words[wanted]} beside {words[other]}: the former are used")
    elif branches == {"ema"} and not ema:
        notices.append(f"the {part} has weights averaged over the training only: they are used")
    dtype = spec.dtypes.get(part, "")
    # Of the same weights in several forms, the one with which there is least to do.
    whole = [one for one in whole if one.ready] or whole
    whole = [one for one in whole if one.layout != "gguf"] or whole
    whole = [one for one in whole if one.dtype == dtype] or whole
    # Small files may lie in two places; of weights this must not decide.
    if not any(one.tensors for one in whole):
        whole = [one for one in whole if one.path.name == part] or whole
    different = {tuple(sorted(file.resolve() for file in one.files)): one for one in whole}
    if len(different) > 1:
        paths = ", ".join(str(one.path) for one in different.values())
        raise InvalidRequestError(
            f"more than one thing could be the {part} of {spec.name}: {paths}",
            hint="name a folder that holds only one of them",
        )
    return whole[0]


def _wrong(spec: ModelSpec, part: str, candidates: list[FoundPart]) -> OspError:
    one = candidates[0]
    return InvalidRequestError(
        f"{one.path} cannot be the {part} of {spec.name}: it is {misfit(spec, part, one)}",
        hint="osp models lists the cards; another one may be made for it",
    )


def _add_tokenizer(spec: ModelSpec, found: Sequence[FoundPart], choice: Choice) -> None:
    """A language model's tokenizer may lie in its folder, or in one of its own."""
    encoder = choice.parts.get("text_encoder")
    if encoder is None or "tokenizer" in spec.parts or "qwen" not in spec.conditioner:
        return
    if any(file.name == "tokenizer_config.json" for file in encoder.companions):
        return
    fitting = [
        one for one in found if one.part == "tokenizer" and not misfit(spec, "tokenizer", one)
    ]
    if fitting:
        choice.parts["tokenizer"] = _best(spec, "tokenizer", fitting, True, choice.notices)
    else:
        choice.missing.append("tokenizer")


def _add_processor(choice: Choice) -> None:
    """CLIP's original file comes without settings; how its pictures are prepared is known."""
    encoder = choice.parts.get("image_encoder")
    if "image_processor" in choice.missing and encoder is not None and encoder.layout == "original":
        choice.missing.remove("image_processor")
        choice.parts["image_processor"] = FoundPart(
            part="image_processor", kind="image-processor", path=encoder.path, layout="original",
            settings=kinds.CLIP_PROCESSOR, ready=True,
        )  # fmt: skip


def _check_widths(spec: ModelSpec, parts: dict[str, FoundPart]) -> None:
    """Conditioning enters the transformer as wide as it leaves what makes it.

    Raises:
        InvalidRequestError: it does not; both are named.
    """
    transformer, adapter, encoder = (
        parts.get(part) for part in ("transformer", "adapter", "text_encoder")
    )
    last = adapter if adapter is not None else encoder
    width = None
    if adapter is not None:
        width = adapter.settings.get("out_features")
        given = _hidden_size(encoder) if encoder is not None else None
        if given is not None and given != adapter.settings.get("in_features"):
            raise InvalidRequestError(
                f"{adapter.path} reads {adapter.settings.get('in_features')} features, "
                f"{encoder.path if encoder else ''} gives {given}"
            )
    elif encoder is not None and encoder.kind == "umt5":
        width = encoder.settings.get("d_model")
    taken = transformer.settings.get("text_dim") if transformer is not None else None
    if transformer is not None and last is not None and width and taken and width != taken:
        raise InvalidRequestError(
            f"{last.path} gives conditioning of width {width}, {transformer.path} takes {taken}"
        )


def _hidden_size(encoder: FoundPart) -> int | None:
    """Width of a language model, as the shape of its vocabulary says."""
    for name, tensor in encoder.tensors.items():
        if name.endswith("embed_tokens.weight"):
            return tensor.shape[1]
    return None


def _image_token_width(spec: ModelSpec) -> int:
    from osp_cli.conditioning.image_tokens import POSITION_FEATURES

    per_token = spec.latent_channels * spec.image_token_patch**2
    return per_token + POSITION_FEATURES * spec.image_token_positions


def unrecognised(found: Sequence[FoundPart]) -> list[FoundPart]:
    """What could not be told, with the reason in `problem`."""
    return [one for one in found if one.part == UNKNOWN]


def nothing_found(spec: ModelSpec, where: str, found: Sequence[FoundPart]) -> OspError:
    """The error of a place that holds nothing that the model needs."""
    reasons = "".join(f"; {one.problem}" for one in unrecognised(found)[:3])
    return InvalidRequestError(
        f"there is nothing in {where} that {spec.name} could use{reasons}",
        hint=missing_sentence(spec, spec.parts),
    )
