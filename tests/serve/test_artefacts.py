"""Files of the service: whole or not there, by server-made names alone, on a disk and behind a URL."""

import os
import uuid
from pathlib import Path

import pytest

from p2e.errors import ConfigError, OutputError
from serve.artefacts import ArtefactStore
from serve.errors import NotFound

NAME = "video_0f.mp4"


@pytest.fixture(params=["disk", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(
        str(tmp_path / "deep" / "store") if request.param == "disk" else f"memory://{uuid.uuid4().hex}"
    )


def test_a_file_comes_back_whole_and_in_part(store: ArtefactStore) -> None:
    data = os.urandom(3 << 20)
    with store.writing(NAME) as path:
        path.write_bytes(data)
    assert store.size(NAME) == len(data) and store.names() == [NAME]
    assert b"".join(store.read(NAME, 0, len(data))) == data
    assert b"".join(store.read(NAME, 5, 2_000_000)) == data[5:2_000_000]
    store.remove(NAME)
    store.remove(NAME)
    assert store.names() == []
    for call in (store.size, store.open, lambda name: list(store.read(name, 0, 1))):
        with pytest.raises(NotFound):
            call(NAME)


def test_what_breaks_half_way_is_not_there(store: ArtefactStore) -> None:
    with pytest.raises(RuntimeError), store.writing(NAME) as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert store.names() == []


def test_a_file_is_replaced_at_once(store: ArtefactStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for content in (b"first", b"second"):
        source.write_bytes(content)
        store.put(NAME, source)
    assert b"".join(store.read(NAME, 0, 99)) == b"second"


@pytest.mark.parametrize(
    "name",
    ["../etc/passwd.mp4", "/etc/passwd.mp4", "a/b.mp4", "a.mp4\n", "a\0.mp4", ".mp4", "a.exe", "A.mp4", "..mp4", "",
     "a.mp4.py", "x" * 99 + ".mp4", "\u2024\u2024/a.mp4"],
)  # fmt: skip
def test_no_other_name_is_opened(store: ArtefactStore, name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for call in (store.size, store.open, store.remove, lambda n: list(store.read(n, 0, 1))):
        with pytest.raises(NotFound):
            call(name)
    with pytest.raises(NotFound), store.writing(name):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_old_files_are_found(tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path))
    for name, age in (("old.mp4", 5000), ("new.mp4", 10)):
        (tmp_path / name).write_bytes(b"x")
        at = store.clock() - age
        os.utime(tmp_path / name, (at, at))
    (tmp_path / "not ours").write_bytes(b"x")
    assert store.older_than(1000) == ["old.mp4"]


def test_a_full_or_closed_disk_is_said(tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path / "store"))
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("a file where the folder was")
    with pytest.raises(OutputError, match="choose another place"), store.writing(NAME) as path:
        path.write_bytes(b"x")


@pytest.mark.parametrize("root", ["/proc/nowhere/x", "nothing://x"])
def test_a_root_that_cannot_be_used_is_named(root: str) -> None:
    with pytest.raises(ConfigError, match="give a folder or an fsspec URL"):
        ArtefactStore(root)
