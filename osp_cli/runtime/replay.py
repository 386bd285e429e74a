"""Is this the clip that the recipe speaks of? Comparisons of recipes, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.media.image import decode_image, load_image
from osp_cli.media.recipes import read_recipe
from osp_cli.media.source_video import probe_source
from osp_cli.outputs import STDOUT, latents_path, windows_folder
from osp_cli.requests import GenerateRequest, RestyleRequest

# Dials of the file, which may change without sampling anew.
_OF_THE_FILE = ("fps",)


def same_clip(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two recipes have the same latents: equal in all but the dials of the file.

    Which frames of a source are restyled depends on their rate, so that is no such dial there.
    """
    free = () if "video" in other else _OF_THE_FILE
    names = (one.keys() | other.keys()) - {*free}
    return all(one.get(name) == other.get(name) for name in names)


def differences(former: Mapping[str, Any], now: Mapping[str, Any], called: str) -> list[str]:
    """What keeps a clip from being the one of the recipe `former`, a sentence each.

    Flags that were changed on purpose are not among them: only the version, the picture and the
    weights, whose change is not seen on the command line.
    """
    found = []
    if former.get("version") != now["version"]:
        found.append(
            f"{called} was made by version {former.get('version')}, this is {now['version']}"
        )
    if former.get("image_sha256") != now["image_sha256"]:
        found.append(f"the picture is not the one of {called}: {now['image']} has other contents")
    if former.get("video_sha256") != now.get("video_sha256"):
        found.append(f"the video is not the one of {called}: {now['video']} has other contents")
    if former.get("model") == now["model"]:
        before, after = former.get("weights_sha256"), now["weights_sha256"]
        before = before if isinstance(before, Mapping) else {}
        changed = sorted(
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        )
        if changed:
            found.append(
                f"the weights of {now['model']} are not those of {called}: {', '.join(changed)}"
            )
    before, after = former.get("loras_sha256", []), now.get("loras_sha256", [])
    if former.get("loras") == now.get("loras") and before != after:
        found += [
            f"the LoRA {entry['file']} is not the one of {called}: it has other contents"
            for entry, *hashes in zip(now["loras"], before, after, strict=False)
            if hashes[0] != hashes[1]
        ]
    same_words = all(former.get(name) == now[name] for name in ("prompt", "style", "model"))
    if same_words and former.get("full_prompt") != now["full_prompt"]:
        found.append(f"style {now['style']} has other words than when {called} was made")
    return found


def refuse_unfinished(request: GenerateRequest) -> None:
    """Refuse to work over the latents of another clip, before anything heavy is imported.

    What only the run knows, such as hashes, is compared there.

    Raises:
        InvalidRequestError: such latents lie where this run would put its own.
    """
    is_video = isinstance(request, RestyleRequest)
    path = windows_folder(request.output) if is_video else latents_path(request.output)
    if request.overwrite or request.output == STDOUT or request.latents == path:
        return
    if not path.exists():
        return
    if not made_by(read_recipe(path) or {}, request):
        raise unfinished_work(path)


def made_by(recipe: Mapping[str, Any], request: GenerateRequest) -> bool:
    """Whether a recipe is this request's, as far as that is known before the run."""
    asked = {
        name: value
        for name, value in request.recipe().items()
        if value is not None and value != "auto"
    }
    return same_clip({name: recipe.get(name) for name in asked}, asked)


def same_picture(recipe: Mapping[str, Any], request: GenerateRequest) -> bool:
    """Whether the request's picture has the contents that a recipe tells.

    Raises:
        UnreadableMediaError: the picture cannot be read.
    """
    digest = None
    if request.image_data is not None:
        digest = decode_image(request.image_data, name="the picture on stdin").sha256
    elif request.image is not None:
        digest = load_image(request.image).sha256
    return bool(recipe.get("image_sha256") == digest)


def same_video(recipe: Mapping[str, Any], request: RestyleRequest) -> bool:
    """Whether the request's video has the contents that a recipe tells.

    Raises:
        UnreadableMediaError: the video cannot be read.
    """
    return bool(recipe.get("video_sha256") == probe_source(request.video).sha256)


def same_source(recipe: Mapping[str, Any], request: GenerateRequest) -> bool:
    """Whether what the request is made of, picture or video, is what a recipe tells of.

    Raises:
        UnreadableMediaError: it cannot be read.
    """
    if isinstance(request, RestyleRequest):
        return same_video(recipe, request)
    return same_picture(recipe, request)


def unfinished_work(path: Path) -> InvalidRequestError:
    """The error of latents of another clip, or of a folder of windows, that are in the way."""
    finish = (
        f"osp generate --from '{path}'"
        if path.suffix == ".safetensors"
        else "the command that began it"
    )
    return InvalidRequestError(
        f"{path} holds the unfinished work of another run",
        hint=f"{finish} finishes it, -y replaces it",
    )
