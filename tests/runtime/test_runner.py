"""One request as a stream of events: order, files, recipe, and every way it may end."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from osp_cli import __version__, registry
from osp_cli.cli.app import main
from osp_cli.dials import step_cache
from osp_cli.errors import (
    BatchPartlyFailedError,
    InterruptedRunError,
    InvalidRequestError,
    RuntimeFailureError,
    UnreadableMediaError,
    WeightsMissingError,
    WontFitError,
)
from osp_cli.events import (
    Done,
    Failed,
    ItemStarted,
    LatentsSaved,
    Loaded,
    Notice,
    Planned,
    Preview,
    Saved,
    StageFinished,
    StepDone,
)
from osp_cli.media import sinks
from osp_cli.media.recipes import read_recipe
from osp_cli.media.video import probe_video, read_video
from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.runtime import devices, freezing, runner, settling, stages
from osp_cli.runtime.batch import run_batch
from osp_cli.runtime.contact import run_contact
from osp_cli.runtime.loading import PARTS, load_parts
from osp_cli.runtime.models import Models
from osp_cli.runtime.replay import refuse_unfinished
from osp_cli.runtime.runner import run
from osp_cli.runtime.settling import preview_plan
from osp_cli.stopping import StopSignal


def names(events):
    return [
        f"{e.type} {e.name} {'finished' if isinstance(e, StageFinished) else 'started'}"
        if e.type == "stage"
        else e.type
        for e in events
    ]


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


# --- what is told and written ----------------------------------------------------------------


def test_the_story_of_a_run(request_for, away):
    events = list(run(request_for()))
    assert names(events) == [
        "plan",
        *["load"] * 3,
        "stage condition started",
        "stage condition finished",
        *["step"] * 2,
        "latents",
        "stage decode started",
        "stage decode finished",
        "stage encode started",
        "stage encode finished",
        "saved",
        "done",
    ]
    [planned], [saved] = of(events, Planned), of(events, Saved)
    assert (planned.plan.width, planned.plan.height) == (96, 64)
    assert (planned.plan.model, planned.plan.device, planned.plan.seed) == ("tiny", "cpu", 1)
    assert saved.path == Path("clip.mp4")
    assert saved.bytes == Path("clip.mp4").stat().st_size
    assert saved.sidecar == Path("clip.mp4.json")
    assert left(away) == ["cat.png", "clip.mp4", "clip.mp4.json"]
    # Every event but the pixels reaches the listener, and each is a line of JSON.
    for event in events:
        assert json.loads(json.dumps(event.as_json()))["type"] == event.type


def test_the_timings_are_those_of_the_stages(request_for):
    started = time.perf_counter()
    events = list(run(request_for()))
    elapsed = time.perf_counter() - started
    [done] = of(events, Done)
    assert set(done.timings) == {"load", "condition", "sampling", "decode", "encode"}
    assert done.timings["load"] == pytest.approx(sum(e.seconds for e in of(events, Loaded)))
    assert done.timings["sampling"] == pytest.approx(sum(e.seconds for e in of(events, StepDone)))
    for stage in of(events, StageFinished):
        assert done.timings[stage.name] == stage.seconds
    assert all(seconds > 0 for seconds in done.timings.values())
    assert sum(done.timings.values()) < done.seconds <= elapsed


def test_the_file_plays(request_for):
    list(run(request_for(num_frames=9, fps=8)))
    info = probe_video("clip.mp4")
    assert (info.width, info.height, info.num_frames, info.fps) == (96, 64, 9, 8.0)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((300, 200), (96, 64)), ((200, 200), (64, 64)), ((90, 400), (64, 96)), ((1, 1), (64, 64))],
)
def test_the_bucket_nearest_to_the_picture_is_taken(request_for, picture, size, bucket):
    Image.new("RGB", size, (200, 90, 30)).save(picture)
    planned = next(run(request_for()))
    assert (planned.plan.width, planned.plan.height) == bucket


def test_an_asked_size_wins_over_the_buckets(request_for):
    planned = next(run(request_for(width=32, height=128)))
    assert (planned.plan.width, planned.plan.height) == (32, 128)


def test_a_cut_is_told_when_it_is_more_than_a_sliver(request_for, picture):
    assert of(run(request_for()), Notice) == []  # 97x64 in 96x64
    Image.new("RGB", (400, 100)).save(picture)
    [notice] = of(run(request_for(overwrite=True)), Notice)
    assert (
        notice.message == "the picture of 400x100 fills 96x64, 62% of it is cut at left and right"
    )
    Image.new("RGB", (100, 200)).save(picture)
    [notice] = of(run(request_for(overwrite=True)), Notice)
    assert notice.message.endswith("25% of it is cut at top and bottom")


def test_notices_of_the_picture_are_passed_on(request_for, away):
    frames = [Image.new("RGB", (96, 64), (k, 90, 200)) for k in (10, 200)]
    frames[0].save(away / "cat.gif", save_all=True, append_images=frames[1:])
    notices = of(run(request_for(image=away / "cat.gif")), Notice)
    assert any("first" in notice.message for notice in notices)


def test_text_alone_takes_the_cards_size(request_for):
    events = list(run(request_for(image=None, text_only=True)))
    assert (of(events, Planned)[0].plan.width, of(events, Planned)[0].plan.height) == (96, 64)
    recipe = read_recipe("clip.mp4")
    assert (recipe["image"], recipe["image_sha256"]) == (None, None)


# --- sameness --------------------------------------------------------------------------------


def video_of(request):
    list(run(request))
    return request.output.read_bytes()


def test_the_same_request_gives_the_same_bytes(request_for, picture, away):
    one = video_of(request_for(output=Path("one.mp4")))
    torch.manual_seed(77)
    assert video_of(request_for(output=Path("two.mp4"))) == one
    # Neither where the picture lies nor what it is called changes a pixel.
    other = away / "dog.png"
    picture.rename(other)
    video_of(request_for(image=other, output=Path("dog.mp4")))
    np.testing.assert_array_equal(read_video("one.mp4"), read_video("dog.mp4"))


def test_another_seed_gives_other_frames(request_for):
    video_of(request_for(output=Path("one.mp4")))
    video_of(request_for(output=Path("two.mp4"), seed=2))
    assert (read_video("one.mp4") != read_video("two.mp4")).mean() > 0.3


def test_a_style_changes_what_the_model_reads(request_for):
    list(run(request_for(style="ink", output=Path("ink.mp4"))))
    list(run(request_for(output=Path("plain.mp4"))))
    ink, plain = read_recipe("ink.mp4"), read_recipe("plain.mp4")
    assert ink["full_prompt"] == "ink painting style, pan left"
    assert plain["full_prompt"] == "pan left"
    assert (read_video("ink.mp4") != read_video("plain.mp4")).any()


MIXTURE = "ghibli:0.3+ink:0.5"


def test_a_whole_weight_changes_nothing(request_for):
    list(run(request_for(style="ink", output=Path("one.mp4"))))
    list(run(request_for(style="INK:1.0", output=Path("two.mp4"))))
    assert Path("one.mp4").read_bytes() == Path("two.mp4").read_bytes()


def test_a_weight_lies_between_unstyled_and_styled(request_for):
    def frames(style):
        # As pictures: what a codec leaves out is more than styles differ in this tiny model.
        folder = Path(style.replace(":", "-"))
        list(run(request_for(style=style, output=folder / "%d.png", makes_folder=True)))
        return np.stack([np.asarray(Image.open(p), float) for p in sorted(folder.glob("*.png"))])

    plain, half, full = frames("none"), frames("ink:0.5"), frames("ink")
    apart = np.abs(full - plain).mean()
    assert 0 < np.abs(half - plain).mean() < apart
    assert 0 < np.abs(half - full).mean() < apart


@pytest.mark.parametrize("cache", ["none", "fbcache:0.3", "magcache"])
def test_an_interrupted_mixture_is_finished_to_the_same_bytes(request_for, cache):
    dials = {"style": MIXTURE, "num_inference_steps": 4, "cache": step_cache(cache)}
    list(run(request_for(**dials, output=Path("whole.mp4"))))
    stop = StopSignal()
    with pytest.raises(InterruptedRunError):
        for event in run(request_for(**dials), stop=stop):
            if isinstance(event, StepDone) and event.step == 2:
                stop._signum = 2
    assert left(Path()) == ["cat.png", "clip.latents.safetensors", "whole.mp4", "whole.mp4.json"]
    events = list(run(request_for(**dials)))
    assert len(of(events, StepDone)) == 2
    assert Path("clip.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    # Another mixture is another clip.
    assert read_recipe("clip.mp4")["style"] == MIXTURE


def test_the_recipe_of_a_mixture_makes_it_again(request_for, capsys):
    request = request_for(style=MIXTURE)
    list(run(request))
    assert read_recipe("clip.mp4")["full_prompt"] == request.full_prompt
    made = Path("clip.mp4").read_bytes()
    assert main(["generate", "--from", "clip.mp4", "-o", "again.mp4", "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert Path("again.mp4").read_bytes() == made


# --- the recipe ------------------------------------------------------------------------------


def test_the_recipe_holds_everything_that_made_the_video(request_for, picture, tiny_home):
    request = request_for(style="ink", cutoff=(0.2, 0.5), negative_prompt="rain")
    list(run(request))
    recipe = read_recipe("clip.mp4")
    assert json.loads(Path("clip.mp4.json").read_text()) == recipe
    asked = request.recipe()
    assert recipe.keys() == asked.keys() | {
        "image_sha256",
        "weights_sha256",
        "loras_sha256",
    }
    settled = {"width": 96, "height": 64, "dtype": "float32"}
    settled |= {"quant": "none", "vae_tiling": False, "attention": "sdpa"}
    assert {k: recipe[k] for k in asked} == {**asked, **settled}
    assert recipe["image_sha256"] == hashlib.sha256(picture.read_bytes()).hexdigest()
    folder = tiny_home / "models" / "tiny"
    assert recipe["weights_sha256"] == {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.safetensors")
    }
    assert len(recipe["weights_sha256"]) == 5


def test_the_recipe_knows_neither_place_nor_time_nor_machine(request_for, away, tiny_home):
    list(run(request_for(image=away / "cat.png", output=away / "clip.mp4")))
    text = (away / "clip.mp4.json").read_text()
    for secret in (str(away), str(tiny_home), str(Path.home()), socket.gethostname(), "clip"):
        assert secret not in text
    assert json.loads(text)["image"] == "cat.png"
    words = {word for key in json.loads(text) for word in key.split("_")}
    assert not words & {"time", "date", "host", "path", "output", "user", "device"}


# --- how a run may end -----------------------------------------------------------------------


@pytest.fixture
def loading_is_a_mistake(monkeypatch):
    def refused(*_):
        raise AssertionError("nothing may be loaded")
        yield

    monkeypatch.setattr("osp_cli.runtime.models.load_parts", refused)


def test_closing_after_the_clip_is_saved_tidies_up(request_for, away):
    events = run(request_for())
    while not isinstance(next(events), Saved):
        pass
    events.close()
    assert left(away) == ["cat.png", "clip.mp4", "clip.mp4.json"]


@pytest.fixture
def loading_is_told(monkeypatch):
    """Names of the parts that are loaded."""
    names = []
    genuine = load_parts

    def told(spec, plan, folder, wanted):
        names.extend(wanted)
        return genuine(spec, plan, folder, wanted)

    monkeypatch.setattr("osp_cli.runtime.models.load_parts", told)
    return names


@pytest.mark.parametrize("after", ["plan", "load", "step", "stage"])
def test_closing_early_leaves_no_file(request_for, away, after):
    events = run(request_for())
    for event in events:
        if event.type == after:
            break
    events.close()
    assert left(away) == ["cat.png"]
    assert list(events) == []


def fails_once(monkeypatch, target, error):
    """Makes one function raise at its first call."""
    genuine = getattr(*target)

    def failing(*args, **kwargs):
        monkeypatch.setattr(*target, genuine)
        raise copy.copy(error)

    monkeypatch.setattr(*target, failing)


@pytest.mark.parametrize(
    ("target", "error", "told", "words"),
    [
        ((sinks, "write_video"), KeyboardInterrupt(), InterruptedRunError, "interrupted while"),
        ((sinks, "write_video"), WontFitError("no space"), WontFitError, "no space"),
        ((stages, "decode_frames"), RuntimeError("bad kernel"), RuntimeFailureError, "bad kernel"),
        ((stages, "decode_frames"), WontFitError("too large"), WontFitError, "too large"),
    ],
    ids=["Ctrl-C", "full disk", "failed decode", "out of memory"],
)
def test_after_sampling_nothing_is_lost(
    request_for, away, monkeypatch, loading_is_told, target, error, told, words
):
    """The latents are kept and named; the same request, or their name, finishes the clip."""
    expected = video_of(request_for(output=Path("whole.mp4")))
    kept = Path("clip.latents.safetensors")
    for finish in (request_for(), request_for(image=None, latents=kept)):
        fails_once(monkeypatch, target, error)
        with pytest.raises(told, match=words) as raised:
            list(run(request_for()))
        assert raised.value.kept == (kept,)
        assert left(away) == ["cat.png", str(kept), "whole.mp4", "whole.mp4.json"]
        loading_is_told.clear()
        assert video_of(finish) == expected
        # Only the autoencoder is needed.
        assert loading_is_told == ["vae"]
        assert not kept.exists()
        assert json.loads(Path("clip.mp4.json").read_text()) == read_recipe("whole.mp4")
        for path in (kept, Path("clip.mp4"), Path("clip.mp4.json")):
            path.unlink(missing_ok=True)


def test_latents_stay_where_another_file_is_made_of_them(request_for, away, monkeypatch):
    fails_once(monkeypatch, (stages, "decode_frames"), WontFitError("too large"))
    with pytest.raises(WontFitError):
        list(run(request_for()))
    kept = Path("clip.latents.safetensors")
    list(run(request_for(image=None, latents=kept, output=Path("other.gif"))))
    assert left(away) == ["cat.png", str(kept), "other.gif", "other.gif.json"]


@pytest.mark.parametrize("named", [False, True])
def test_a_closed_pipe_removes_no_latents_that_the_user_named(
    request_for, away, own_weights, monkeypatch, named
):
    fails_once(monkeypatch, (stages, "decode_frames"), WontFitError("too large"))
    with pytest.raises(WontFitError):
        list(run(request_for()))
    mine = Path("clip.latents.safetensors")
    fails_once(monkeypatch, (runner, "open_sink"), BrokenPipeError())
    source = {"image": None, "latents": mine} if named else {}
    with pytest.raises(BrokenPipeError):
        list(run(request_for(output=Path("-"), **source)))
    # Those that a run saved for itself are gone, mine are not.
    assert left(away) == ["cat.png", str(mine)]
    assert not list(freezing.spare_folder().glob("*"))


def test_latents_go_elsewhere_when_their_disk_is_full(request_for, away, own_weights, monkeypatch):
    genuine = freezing.atomic_output

    def full_here(path, **settings):
        if path.parent == Path():
            raise WontFitError("no space left")
        return genuine(path, **settings)

    monkeypatch.setattr(freezing, "atomic_output", full_here)
    fails_once(monkeypatch, (stages, "decode_frames"), WontFitError("too large"))
    with pytest.raises(WontFitError) as raised:
        list(run(request_for()))
    [kept] = raised.value.kept
    assert kept.parent == freezing.spare_folder()
    assert left(away) == ["cat.png"]
    monkeypatch.undo()
    monkeypatch.chdir(away)
    assert freezing.thaw(kept).is_sampled


def test_work_of_another_clip_is_not_overwritten(request_for, away, monkeypatch):
    fails_once(monkeypatch, (stages, "decode_frames"), WontFitError("too large"))
    with pytest.raises(WontFitError):
        list(run(request_for()))
    other = request_for(seed=2)
    with pytest.raises(InvalidRequestError, match="unfinished work of another run") as refused:
        list(run(other))
    assert "--from 'clip.latents.safetensors'" in refused.value.hint
    with pytest.raises(InvalidRequestError, match="unfinished work"):
        refuse_unfinished(other)
    refuse_unfinished(request_for())
    # The picture's contents are known to the run alone.
    Image.new("RGB", (97, 64)).save(away / "cat.png")
    refuse_unfinished(request_for())
    with pytest.raises(InvalidRequestError, match="unfinished work"):
        list(run(request_for()))
    list(run(request_for(seed=2, overwrite=True)))
    assert left(away) == ["cat.png", "clip.mp4", "clip.mp4.json"]


def test_damaged_latents_are_refused_in_a_sentence(request_for, away):
    path = away / "x.latents.safetensors"
    for data in (b"", b"\0" * 7, b"\xff" * 64, (9).to_bytes(8, "little") + b'{"a": 1}}'):
        path.write_bytes(data)
        with pytest.raises(UnreadableMediaError, match=r"damaged|holds no latents"):
            list(run(request_for(image=None, latents=path)))


def test_a_stop_is_heard_after_the_step(request_for, away):
    stop = StopSignal()
    seen = []
    with pytest.raises(InterruptedRunError, match="after step 1 of 2") as raised:
        for event in run(request_for(), stop=stop):
            seen.append(event)
            if isinstance(event, StepDone):
                stop._signum = 2
    assert isinstance(seen[-1], LatentsSaved)
    assert raised.value.kept == (Path("clip.latents.safetensors"),)
    notices = of(run(request_for()), Notice)
    assert any("going on from clip.latents.safetensors" in notice.message for notice in notices)
    one = Path("clip.mp4").read_bytes()
    assert one == video_of(request_for(output=Path("two.mp4")))


# --- replay, previews, batches ---------------------------------------------------------------


def test_what_differs_from_a_recipe_is_named(request_for, picture, own_weights):
    list(run(request_for()))
    recipe = read_recipe("clip.mp4")

    def told(**changes):
        request = request_for(
            replayed={**recipe, **changes}, replayed_from="clip.mp4", overwrite=True
        )
        return [notice.message for notice in of(run(request), Notice)]

    assert told() == []
    assert told(version="0.0.1") == [f"clip.mp4 was made by version 0.0.1, this is {__version__}"]
    assert told(image_sha256="0" * 64) == [
        "the picture is not the one of clip.mp4: cat.png has other contents"
    ]
    weights = {**recipe["weights_sha256"], "vae/extra.safetensors": "0" * 64}
    assert told(weights_sha256=weights) == [
        "the weights of tiny are not those of clip.mp4: vae/extra.safetensors"
    ]
    assert told(full_prompt="other words")[0].startswith("style None has other words")


def test_weights_that_changed_since_the_latents_were_saved_are_named(
    request_for, own_weights, monkeypatch
):
    fails_once(monkeypatch, (stages, "decode_frames"), WontFitError("too large"))
    with pytest.raises(WontFitError):
        list(run(request_for()))
    (own_weights / "vae" / "extra.safetensors").write_bytes(save({"x": torch.zeros(1)}))
    kept = Path("clip.latents.safetensors")
    frozen = freezing.thaw(kept)
    _, notices = settling.settle(request_for(image=None, latents=kept))
    assert notices == [f"the weights of tiny are not those of {kept}: vae/extra.safetensors"]
    assert frozen.is_sampled
    # By itself a run does not take up what other weights have left.
    with pytest.raises(InvalidRequestError, match="unfinished work"):
        list(run(request_for()))


def test_a_limit_without_effect_is_told(request_for):
    told = "--max-vram has no effect on the CPU, --max-ram has"
    assert told in preview_plan(request_for(device="cpu", max_vram=10**10))[1]
    assert told not in preview_plan(request_for(device="cpu", max_ram=10**10))[1]


def test_a_dry_run_reads_no_weights(request_for, monkeypatch, loading_is_a_mistake):
    def read(*_):
        raise AssertionError("weights are read")

    monkeypatch.setattr("osp_cli.hub.hashes._read", read)
    planned, notices = preview_plan(request_for())
    assert notices == []
    assert planned.plan.expected_seconds > 0
    assert planned.plan.operations > 1e6
    with pytest.raises(AssertionError, match="weights are read"):
        next(run(request_for()))


def test_a_preview_is_drawn_while_sampling_and_goes_with_the_clip(request_for, away, monkeypatch):
    sizes = []
    for event in run(request_for(preview="latent", num_inference_steps=8, num_frames=17)):
        if isinstance(event, Preview):
            with Image.open(event.path) as strip:
                sizes.append((event.step, strip.size[0] > 3 * strip.size[1]))
    assert sizes == [(2, True), (4, True), (6, True), (8, True)]
    assert left(away) == ["cat.png", "clip.mp4", "clip.mp4.json"]


@pytest.mark.parametrize(
    ("change", "loads"),
    [
        ({"defaults": {"num_inference_steps": 4}, "magcache": None, "title": "Quick"}, 0),
        ({"max_sequence_length": 48}, 3),
    ],
)
def test_cards_of_the_same_weights_share_what_is_loaded(
    request_for, tiny_card, monkeypatch, change, loads
):
    other = replace(tiny_card, name="other", **change)
    specs = {**registry.model_specs(), "other": other}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    models = Models()
    assert len(of(run(request_for(), models=models), Loaded)) == 3
    second = request_for(model="other", output=Path("two.mp4"))
    assert len(of(run(second, models=models), Loaded)) == loads


def test_a_batch_loads_once_and_goes_on_after_a_failure(request_for, away):
    one = video_of(request_for(seed=1, output=Path("alone.mp4")))
    items = [
        request_for(seed=1, output=Path("a.mp4")),
        InvalidRequestError("line 2 makes no sense"),
        request_for(image=away / "missing.png", output=Path("b.mp4")),
        request_for(seed=2, output=Path("c.mp4")),
    ]
    events = []
    with pytest.raises(BatchPartlyFailedError, match="2 of 4 videos failed") as raised:
        for event in run_batch(items):
            events.append(event)
    assert raised.value.exit_code == 6
    assert [event.component for event in of(events, Loaded)] == [*PARTS]
    assert [(event.item, event.exit_code) for event in of(events, Failed)] == [(2, 2), (3, 2)]
    assert [event.item for event in of(events, ItemStarted)] == [1, 3, 4]
    assert [str(event.path) for event in of(events, Saved)] == ["a.mp4", "c.mp4"]
    assert Path("a.mp4").read_bytes() == one
    with pytest.raises(InvalidRequestError, match="none of 1 videos could be made"):
        list(run_batch([items[1]]))


def test_a_contact_sheet_is_a_start_that_can_be_picked(request_for, away):
    def requests(**changes):
        return [
            request_for(seed=seed, output=Path(f"cat-{seed}.mp4"), num_inference_steps=6, **changes)
            for seed in (8, 9, 10)
        ]

    expected = video_of(replace(requests()[1], output=Path("whole.mp4")))
    events = list(run_contact(requests(preview="contact")))
    assert [event.step for event in of(events, LatentsSaved)] == [2, 2, 2]
    [saved] = of(events, Saved)
    assert saved.path == Path("cat.contact.png")
    picked = list(run(requests()[1]))
    assert [event.step for event in of(picked, StepDone)] == [3, 4, 5, 6]
    assert Path("cat-9.mp4").read_bytes() == expected
    # Drawn again, a sheet does not throw away what was sampled since.
    again = list(run_contact(requests(preview="contact", overwrite=True)))
    assert [event.step for event in of(again, LatentsSaved)] == [3, 2, 3]


def test_a_closed_run_frees_its_models(request_for):
    def models():
        gc.collect()
        kinds = (FlashI2VTransformer3DModel, AutoencoderLinear)
        # Not isinstance, which would ask deprecated things of torch for their class.
        return sum(type(thing) in kinds for thing in gc.get_objects())

    before = models()
    events = run(request_for())
    while next(events).type != "step":
        pass
    assert models() == before + 2
    events.close()
    assert models() == before


def test_what_cannot_fit_is_refused_before_loading(
    request_for, away, monkeypatch, loading_is_a_mistake
):
    monkeypatch.setattr(devices, "available_memory", lambda device: 1_000_000)
    with pytest.raises(
        WontFitError, match=r"tiny needs about .* of memory to .*, 0\.0 GB are free"
    ) as no:
        list(run(request_for()))
    assert no.value.exit_code == 4
    assert left(away) == ["cat.png"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
        RuntimeError("CUDA error: out of memory"),
    ],
    ids=["cuda", "python", "mps", "driver"],
)
def test_running_out_of_memory_is_said_with_a_way_out(request_for, away, monkeypatch, error):
    def forward(self, *_args, **_kwargs):
        raise error

    monkeypatch.setattr(FlashI2VTransformer3DModel, "forward", forward)
    with pytest.raises(WontFitError, match="tiny ran out of memory") as refused:
        list(run(request_for()))
    assert refused.value.hint == "use fewer --frames, a smaller --size, or --model osp-mini"
    assert refused.value.__cause__ is error
    assert left(away) == ["cat.png"]


def test_the_processors_own_words_for_it_are_known(request_for, monkeypatch):
    monkeypatch.setattr(
        FlashI2VTransformer3DModel, "forward", lambda *_args, **_kwargs: torch.empty(2**55)
    )
    with pytest.raises(WontFitError):
        list(run(request_for()))


def test_other_failures_keep_their_own_words(request_for, away, monkeypatch):
    def forward(*_args, **_kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(FlashI2VTransformer3DModel, "forward", forward)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(run(request_for()))
    assert left(away) == ["cat.png"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"device": "cuda:99"}, InvalidRequestError, "--device cuda:99"),
        ({"image": Path("nowhere.png")}, UnreadableMediaError, "nowhere.png"),
        ({"output": Path("taken.mp4")}, InvalidRequestError, "taken.mp4 exists already"),
        ({"output": Path("no/folder.mp4")}, InvalidRequestError, "the folder no does not exist"),
        ({"model": "uniworld-osp2-14b"}, WeightsMissingError, "not installed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals_come_before_any_loading(
    request_for, away, loading_is_a_mistake, changes, error, words
):
    (away / "taken.mp4").write_text("mine")
    with pytest.raises(error, match=words):
        list(run(request_for(**changes)))
    assert left(away) == ["cat.png", "taken.mp4"]
    assert (away / "taken.mp4").read_text() == "mine"


def test_nothing_happens_before_the_first_event_is_asked_for(
    request_for, away, loading_is_a_mistake
):
    run(request_for())
    assert left(away) == ["cat.png"]
