"""The schemas say what is written: no field more or less than the classes have, and no lies."""

from __future__ import annotations

import copy
import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from osp_cli import dials, events, registry, requests
from osp_cli.cli.app import main
from osp_cli.cli.schema import DOCUMENTS, schema_path
from osp_cli.plan import Plan
from osp_cli.train_plan import TrainPlan
from osp_cli.training.dataset.entries import DatasetReport, Finding


def read(document: str) -> dict:
    return json.loads(schema_path(document).read_text("utf-8"))


def validator(document: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(read(document))


def definitions() -> Iterator[tuple[str, dict]]:
    """Name of each event, with its schema; the two kinds of stage under their state."""
    for schema in read("events")["$defs"].values():
        fields = schema["properties"]
        name = fields["type"]["const"]
        yield f"{name} {fields['state']['const']}" if "state" in fields else name, schema


def classes() -> Iterator[tuple[str, type]]:
    # A class with slots is made twice; the second one bears the name.
    known = [cls for cls in events.Event.__subclasses__() if vars(events).get(cls.__name__) is cls]
    for event in known:
        state = {"StageStarted": " started", "StageFinished": " finished"}
        yield event.type + state.get(event.__name__, ""), event


# --- The documents ----------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_is_a_schema_and_is_printed(document, capsys):
    jsonschema.Draft202012Validator.check_schema(read(document))
    assert read(document)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert main(["schema", document]) == 0
    assert json.loads(capsys.readouterr().out) == read(document)


def test_events_are_printed_without_being_named(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == read("events")


def test_an_unknown_document_is_refused(capsys):
    assert main(["schema", "plan"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "unknown document 'plan'" in said.err
    assert "events, recipe, doctor" in said.err


def objects(schema: object) -> Iterator[dict]:
    """All schemas of objects with named fields, however deep."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from objects(part)


# Of recipes: of a restyled video, of the user's own styles, of LoRAs that were trained with
# something else, and of a stream.
OPTIONAL = {
    *("video", "video_sha256", "strength", "total_frames", "own_styles", "style"),
    "companions_sha256",
    *("realtime", "new_frames", "frames", "screenplay", "context", "latent_frames"),
    *("stage_steps", "anchor_color"),
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_object_is_closed_and_every_field_described(document):
    found = list(objects(read(document)))
    assert found
    for schema in found:
        assert schema["additionalProperties"] is False
        lacking = set(schema["properties"]) - set(schema["required"])
        assert set(schema["required"]) <= set(schema["properties"])
        assert lacking <= (OPTIONAL if document == "recipe" else set())
        for name, field in schema["properties"].items():
            assert field.get("description"), name
            unit = {"seconds": "seconds", "bytes": "bytes"}.get(name.rpartition("_")[2])
            assert unit is None or unit in field["description"], name


# --- The classes ------------------------------------------------------------------------------


def json_types(annotation: object) -> set[str]:
    """What a value of this Python type is in JSON."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return set().union(*map(json_types, typing.get_args(annotation)))
    plain = {
        str: "string", Path: "string", int: "integer", float: "number", bool: "boolean",
        type(None): "null", tuple: "array", dict: "object",
    }  # fmt: skip
    return {plain[origin or annotation]}


def schema_types(schema: dict) -> set[str]:
    if "const" in schema:
        return json_types(type(schema["const"]))
    found = schema["type"]
    return {found} if isinstance(found, str) else set(found)


def fields_of(cls: type) -> dict[str, set[str]]:
    hints = typing.get_type_hints(cls)
    return {field.name: json_types(hints[field.name]) for field in dataclasses.fields(cls)}


def test_every_event_has_its_schema_and_the_other_way_round():
    assert sorted(name for name, _ in definitions()) == sorted(name for name, _ in classes())
    assert len(read("events")["oneOf"]) == len(read("events")["$defs"])


# The line of a plan or a report is that itself; frames are told by their shape alone.
FLATTENED = ("plan", "frames", "training", "dataset")


@pytest.mark.parametrize(
    ("name", "cls"),
    [(name, cls) for name, cls in classes() if name not in FLATTENED]
    + [("plan", Plan), ("training", TrainPlan)],
)
def test_fields_and_types_are_those_of_the_class(name, cls):
    written = dict(dict(definitions())[name]["properties"])
    del written["type"]
    written.pop("state", None)
    assert {field: schema_types(schema) for field, schema in written.items()} == fields_of(cls)


def sample(cls: type) -> events.Event:
    """An event of the class with some value in each field."""
    values = {"string": "x", "integer": 1, "number": 0.5, "boolean": True, "array": (Path("x"),)}
    hints = typing.get_type_hints(cls) if cls not in (events.Planned, events.FramesReady) else {}
    given = {
        field.name: values.get(next(iter(sorted(json_types(hints[field.name]) - {"null"}))), {})
        for field in dataclasses.fields(cls)
        if field.name in hints
    }
    return cls(**given)


@pytest.mark.parametrize(
    "cls",
    [cls for name, cls in classes() if name not in FLATTENED],
    ids=lambda cls: cls.__name__,
)
def test_a_line_is_valid_and_a_damaged_one_is_not(cls):
    checked = validator("events")
    line = json.loads(json.dumps(sample(cls).as_json()))
    checked.validate(line)
    for damaged in damage(line):
        assert not checked.is_valid(damaged), damaged


def damage(line: dict) -> Iterator[dict]:
    """The line with a field too many, and each of its own left out or of another type."""
    yield {**line, "surprise": 1}
    for name in line:
        yield {key: value for key, value in line.items() if key != name}
        yield {**line, name: [[]]}


def test_frames_are_told_by_their_shape():
    import numpy as np

    line = events.FramesReady(np.zeros((5, 4, 6, 3), np.uint8)).as_json()
    validator("events").validate(line)


def test_reports_and_plans_of_training_are_valid():
    checked = validator("events")
    finding = Finding(code="too-short", level="error", place="a.mp4", message="it is short")
    report = DatasetReport(
        root=Path("clips"), layout="folder", windows=(), findings=(finding,), num_entries=1,
        seconds=0.0, sha256="0" * 64, buckets={"448x256x49": 2},
    )  # fmt: skip
    plan = TrainPlan(
        model="osp-mini", mode="flash", device="cpu", dtype="float32", quant="none", full=False,
        rank=8, alpha=4.0, targets="paint", trained_parameters=1, num_windows=1, num_tokens=1,
        steps=1, epochs=1, batch=1,
    )  # fmt: skip
    for event in (events.DatasetChecked(report.as_json()), events.TrainingPlanned(plan)):
        line = json.loads(json.dumps(event.as_json()))
        checked.validate(line)
        for damaged in damage(line):
            assert not checked.is_valid(damaged), damaged


def test_null_is_allowed_where_nothing_can_be_told():
    checked = validator("events")
    checked.validate(events.Failed("no", None, 1).as_json())
    checked.validate(events.Saved(Path("a.mp4"), 1, None).as_json())


# --- Words that are listed elsewhere ----------------------------------------------------------


def test_the_words_are_those_of_the_program():
    for fields in (
        dict(definitions())["plan"]["properties"],
        read("recipe")["properties"],
        read("doctor")["$defs"]["plan"]["properties"],
    ):
        assert set(fields["sampler"]["enum"]) == set(requests.STREAM_SAMPLERS)
        assert set(fields["dtype"]["enum"]) == set(registry.DTYPES)
        for cache in dials.CACHES:
            assert jsonschema.Draft202012Validator(fields["cache"]).is_valid(cache)
        assert not jsonschema.Draft202012Validator(fields["cache"]).is_valid("other")


def test_the_plan_of_the_doctor_is_that_of_the_events():
    plan = dict(dict(definitions())["plan"]["properties"])
    del plan["type"]
    assert read("doctor")["$defs"]["plan"]["properties"] == plan


# --- A run ------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_card, capsys):
    """Runs `osp generate` with the tiny model; gives exit code and lines of stdout."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((96, 64), 80).convert("RGB").save("cat.png")

    def call(*args):
        quick = ("-m", "tiny", "--frames", "5", "--steps", "3", "--device", "cpu")
        code = main(["generate", *args, *quick, "--json"])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


def assert_valid(lines):
    checked = validator("events")
    for line in lines:
        problems = [error.message for error in checked.iter_errors(line)]
        assert not problems, (line, problems)


def test_the_lines_of_a_run_are_valid(run):
    code, lines = run("cat.png", "zoom in", "--style", "ink", "--seed", "1", "--preview", "latent")
    assert code == 0
    kinds = {line["type"] for line in lines}
    assert {"plan", "load", "stage", "step", "latents", "preview", "saved", "done"} <= kinds
    assert_valid(lines)


def test_the_lines_of_a_batch_are_valid(run, tmp_path):
    Path("jobs.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "steps": 0}\n{"prompt": "c"}\n')
    code, lines = run("cat.png", "--from-file", "jobs.jsonl")
    assert code == 6
    assert [line["item"] for line in lines if line["type"] == "item"] == [1, 3]
    assert 2 in [line["item"] for line in lines if line["type"] == "error"]
    assert_valid(lines)


def test_the_line_of_a_refusal_is_valid(run):
    code, lines = run("missing.png")
    assert code == 2
    assert [line["type"] for line in lines] == ["error"]
    assert_valid(lines)


def test_the_plan_of_a_dry_run_is_valid(run):
    code, lines = run("cat.png", "--dry-run")
    assert code == 0
    [plan] = [line for line in lines if line["type"] == "plan"]
    assert plan["expected_seconds"] is not None
    assert_valid(lines)


def test_the_recipe_of_a_morph_to_an_own_style_is_valid(run):
    Path("felt.toml").write_text('[prompt]\ntemplate = "Felt. {prompt}"\n')
    style = "ink:0.5..felt.toml"
    assert run("cat.png", "zoom", "--style", style, "--seed", "1", "-o", "a.mp4")[0] == 0
    recipe = json.loads(Path("a.mp4.json").read_text("utf-8"))
    assert recipe["style"] == "ink:0.5..felt"
    assert [part["weight"] for part in recipe["full_prompt"]] == [[0, 1], [0.5, 0], [0.5, 0]]
    checked = validator("recipe")
    checked.validate(recipe)
    recipe["loras"] = [{"file": "felt.safetensors", "weight": 0.5, "style": "felt"}]
    assert checked.is_valid(recipe)
    recipe["full_prompt"][0]["weight"] = [0, 1.1]
    assert not checked.is_valid(recipe)


def test_the_recipe_of_a_run_is_valid_and_damaged_ones_are_not(run):
    assert run("cat.png", "zoom", "--style", "ink", "--seed", "1", "-o", "a.mp4")[0] == 0
    recipe = json.loads(Path("a.mp4.json").read_text("utf-8"))
    checked = validator("recipe")
    checked.validate(recipe)
    assert set(recipe) == set(read("recipe")["required"])
    for damaged in damage(recipe):
        assert not checked.is_valid(damaged), damaged
    wrong = copy.deepcopy(recipe)
    wrong["cutoff"] = [0.1, 2]
    assert not checked.is_valid(wrong)
    wrong = copy.deepcopy(recipe)
    wrong["weights_sha256"]["vae/model.safetensors"] = "none"
    assert not checked.is_valid(wrong)


def test_the_recipe_of_a_mixture_is_valid_and_damaged_ones_are_not(run):
    assert (
        run("cat.png", "zoom", "--style", "ink:0.3+oil:0.5", "--seed", "1", "-o", "a.mp4")[0] == 0
    )
    recipe = json.loads(Path("a.mp4.json").read_text("utf-8"))
    checked = validator("recipe")
    checked.validate(recipe)
    assert recipe["style"] == "ink:0.3+oil:0.5"
    prompts = recipe["full_prompt"]
    assert [part["weight"] for part in prompts] == [0.3, 0.5, pytest.approx(0.2)]
    for wrong in ([], prompts[:1], [{**prompts[0], "weight": 2}, *prompts[1:]], [[], []]):
        assert not checked.is_valid({**recipe, "full_prompt": wrong}), wrong


def test_the_recipe_of_text_alone_is_valid(run):
    assert run("--text", "clouds", "--seed", "1", "-o", "a.mp4")[0] == 0
    recipe = json.loads(Path("a.mp4.json").read_text("utf-8"))
    assert recipe["image"] is None
    assert recipe["image_sha256"] is None
    validator("recipe").validate(recipe)
