"""The page's files and the world's gallery over HTTP: headers, tags, ranges, names that are none."""

import io
from pathlib import Path

import pytest
from databases import Clock
from gateways import services
from PIL import Image
from starlette.testclient import TestClient

from p2e.render.video import read_video
from p2e.world.effects import EFFECTS
from p2e.world.scenes import EVALUATION_SCENES
from serve.gateway import build_app
from serve.services import Services


def client(made: Services, **settings: object) -> TestClient:
    made.settings = made.settings.model_copy(update=settings)
    return TestClient(build_app(made), raise_server_exceptions=False)


@pytest.fixture
def made(tmp_path: Path) -> Services:
    return services(tmp_path, Clock())


def test_the_files_need_no_key_and_load_nothing_from_elsewhere(made: Services) -> None:
    caller = client(made)
    answer = caller.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert caller.head("/").headers["etag"] == answer.headers["etag"] and not caller.head("/").content
    assert caller.get("/", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    kinds = {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}
    for name, kind in kinds.items():
        found = caller.get(f"/page/{name}")
        assert found.headers["content-type"].startswith(kind) and "content-security-policy" in found.headers
    assert not any("://" in line for line in answer.text.splitlines())


@pytest.mark.parametrize(
    "path",
    [
        "/page/..%2fgallery.py", "/page/%2e%2e/page.py", "/page/none.js", "/page/screenshot.png", "/page/",
        "/gallery/clips/none.mp4", "/gallery/clips/..%2f..%2fx.mp4", "/gallery/clips/red_mood.mp4.mp4",
        "/gallery/clips/red_mood", f"/gallery/pictures/{EVALUATION_SCENES}.png", "/gallery/pictures/-1.png",
        f"/gallery/pictures/{10**30}.png", "/gallery/pictures/x.png",
    ],
)  # fmt: skip
def test_names_that_are_none(made: Services, path: str) -> None:
    answer = client(made).get(path)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_the_gallery_is_the_worlds(made: Services, tmp_path: Path) -> None:
    caller = client(made)
    found = caller.get("/gallery.json").json()
    assert [effect["name"] for effect in found["effects"]] == [spec.name for spec in EFFECTS]
    assert len(found["pictures"]) == EVALUATION_SCENES and found["pictures"][4]["title"] == "hamster"
    effect = next(effect for effect in found["effects"] if effect["name"] == "levitation")
    assert effect["prompt"] == "The subject lifts off and floats slowly up into the air." and effect["known"]
    clip = caller.get(f"/{effect['clip']}")
    assert clip.headers["content-type"] == "video/mp4" and "max-age" in clip.headers["cache-control"]
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.content)
    video = read_video(path)
    assert video.frames.shape == (17, 192, 192, 3)
    picture = Image.open(io.BytesIO(caller.get(f"/{effect['picture']['place']}").content))
    assert picture.size == (96, 96) and picture.mode == "RGB"
    small = video.frames[0, ::2, ::2].astype(int)
    assert abs(small - picture).mean() < 8 < abs(video.frames[-1, ::2, ::2].astype(int) - picture).mean()


def test_clips_come_in_ranges(made: Services) -> None:
    caller = client(made)
    whole = caller.get("/gallery/clips/red_mood.mp4")
    part = caller.get("/gallery/clips/red_mood.mp4", headers={"range": "bytes=4-11"})
    assert part.status_code == 206 and part.content == whole.content[4:12]
    assert part.headers["content-range"] == f"bytes 4-11/{len(whole.content)}"
    beyond = caller.get("/gallery/clips/red_mood.mp4", headers={"range": f"bytes={len(whole.content)}-"})
    assert beyond.status_code == 416
    tag = whole.headers["etag"]
    assert caller.get("/gallery/clips/red_mood.mp4", headers={"if-none-match": tag}).status_code == 304


def test_another_base_has_no_gallery(made: Services) -> None:
    caller = client(made, gallery=None)
    assert caller.get("/gallery.json").json() == {"effects": [], "pictures": []}
    for path in ("/gallery/clips/red_mood.mp4", "/gallery/pictures/0.png"):
        assert caller.get(path).status_code == 404
    assert caller.get("/").status_code == 200
