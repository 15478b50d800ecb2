"""Requests: strict, bounded, and refused with the name of the field; answers as OpenAI's client reads them."""

import json
from dataclasses import replace
from typing import Any

import pytest

from p2e.config import RenderConfig
from serve.job import Job
from serve.schemas import (
    EffectRequest,
    RequestLimits,
    Unprocessable,
    VideoRequest,
    clip_settings,
    parsed,
    video_object,
)

EFFECT = "eff_" + "0f" * 16
BASE = RenderConfig(fps=16, frames=81, height=480, width=832, steps=40, guidance=5)
WRONG: dict[str, list[Any]] = {
    "prompt": ["", "  \n", "x" * 2001, "a\0b", "\ud800", 3, None, ["a"], True],
    "seed": [-1, 2**64, 2**63, 1.5, "3", True, float("nan")],
    "strength": [float("nan"), float("inf"), 1e309, 4.1, "1", True, -5],
    "num_frames": [0, -1, 1002, 100_000, 2.5, True, "9"],
    "num_inference_steps": [0, 1001, True, 2.5],
    "guidance_scale": [-1, 101, float("inf"), float("nan")],
    "size": ["0x0", "480", "480X832", "480x832\n", "99999x16", "-16x16", "1e3x16", 480, "\uff14\uff18\uff10x832"],
    "seconds": [5, "-1", "1e3", "nan", "", "5\n", "99999"],
    "effect_id": ["../../etc/passwd", "eff_" + "0F" * 16, EFFECT + "\n", "eff_%2e%2e%2f", "/etc/passwd", "", 3],
    "input_reference": ["data:image/png;base64,AA", {"image_url": "http://127.0.0.1/"}, {"file_id": "x"},
                        {"image_url": "file:///etc/passwd"}, {"image_url": "https://169.254.169.254/"}, {}],
    "unknown": [1],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named_and_not_repeated(field: str, value: Any) -> None:
    with pytest.raises(Unprocessable) as error:
        parsed(VideoRequest, {"prompt": "a fox", field: value})
    assert error.value.status == 422 and (error.value.param or "").split(".")[0] == field
    assert "etc/passwd" not in error.value.message and json.dumps(error.value.envelope).isascii()


def test_a_form_is_text() -> None:
    fields = {"prompt": "a fox", "seed": "7", "strength": "0.5", "num_frames": "9", "size": "480x832"}
    found = parsed(VideoRequest, fields, form=True)
    assert (found.seed, found.strength, found.num_frames) == (7, 0.5, 9)
    for name, value in (("seed", "seven"), ("seed", "1e3"), ("strength", "nan"), ("num_frames", "2.5"), ("x", "1")):
        with pytest.raises(Unprocessable) as error:
            parsed(VideoRequest, fields | {name: value}, form=True)
        assert error.value.param == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either a prompt or a blend"),
        ({"prompt": "a", "blend": [{"effect_id": EFFECT, "weight": 1.0}]}, "either a prompt or a blend"),
        ({"blend": []}, "at least 1 item"),
        ({"blend": [{"effect_id": EFFECT, "weight": 1.0}] * 2}, "each effect of a blend once"),
        ({"blend": [{"effect_id": EFFECT, "weight": 1.0}] * 9}, "at most 8 items"),
        ({"blend": [{"effect_id": "x", "weight": 1.0}]}, "should match pattern"),
        ([], "valid dictionary"),
        ("prompt", "valid dictionary"),
        (None, "valid dictionary"),
    ],
)
def test_an_effect_is_one_thing(values: Any, message: str) -> None:
    with pytest.raises(Unprocessable, match=message):
        parsed(EffectRequest, values)


def test_what_excludes_what() -> None:
    for fields in ({"effect_id": EFFECT, "effect_prompt": "melts"}, {"seconds": "5", "num_frames": 9}):
        with pytest.raises(Unprocessable, match="give either"):
            parsed(VideoRequest, {"prompt": "a fox", **fields})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"frames": 81, "height": 480, "width": 832, "steps": 40, "guidance": 5}),
        ({"seconds": "5"}, {"frames": 81}),
        ({"seconds": "4"}, {"frames": 65}),
        ({"seconds": "0.1"}, {"frames": 1}),
        ({"num_frames": 9, "size": "720x1280", "num_inference_steps": 4}, {"frames": 9, "height": 1280, "width": 720}),
        ({"guidance_scale": 1.0, "negative_prompt": ""}, {"guidance": 1, "negative_prompt": ""}),
    ],
)
def test_a_clip_is_what_is_asked_or_the_bases(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    found = clip_settings(parsed(VideoRequest, {"prompt": "a fox", **fields}), BASE, RequestLimits())
    assert {name: getattr(found, name) for name in expected} == expected and found.fps == 16


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"num_frames": 80}, "num_frames", "give 77 or 81"),
        ({"num_frames": 125}, "num_frames", "at most 121"),
        ({"seconds": "60"}, "seconds", "at most 121 frames"),
        ({"num_inference_steps": 61}, "num_inference_steps", "at most 60"),
        ({"size": "481x832"}, "size", "multiples of 16"),
        ({"size": "00x00"}, "size", "multiples of 16"),
        ({"size": "1920x1088"}, "size", "at most 921600 pixels"),
    ],
)
def test_more_than_a_clip_may_cost_is_refused(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(Unprocessable, match=message) as error:
        clip_settings(parsed(VideoRequest, {"prompt": "a fox", **fields}), BASE, RequestLimits())
    assert error.value.param == param


def test_a_job_is_an_openai_video() -> None:
    clip = BASE.model_dump(mode="json")
    job = Job(
        id="video_1", owner="a", status="queued", request={"prompt": "a fox", "clip": clip, "seed": 3},
        effect_id=EFFECT, steps=40, steps_done=10, attempt=0, worker=None, lease_until=None, cancel_asked=0,
        created_at=1000.6, sequence=1, started_at=None, ended_at=None, expires_at=None, error_code=None,
        error_message=None, artefact=None,
    )  # fmt: skip
    video = video_object(job, "wan")
    assert (video["status"], video["progress"], video["size"], video["seconds"]) == ("queued", 25, "832x480", "5.0625")
    assert video["created_at"] == 1000 and video["error"] is None and video["completed_at"] is None
    done = video_object(replace(job, status="completed", ended_at=2000.0, expires_at=3000.0, steps_done=40), "wan")
    assert (done["progress"], done["completed_at"], done["expires_at"]) == (100, 2000, 3000)
    failed = video_object(replace(job, status="failed", error_code="oom", error_message="out of memory"), "wan")
    assert failed["error"] == {"code": "oom", "message": "out of memory"} and failed["completed_at"] is None
