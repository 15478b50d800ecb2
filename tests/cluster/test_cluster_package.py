"""What `ray job submit --working-dir .` uploads, packed by Ray's own functions."""

import shutil
from pathlib import Path
from zipfile import ZipFile

from cluster_files import ROOT
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import create_package

import p2e

MIB = 2**20


def packed(folder: Path, target: Path) -> dict[str, int]:
    """Names and sizes of the files in the package that Ray makes of a folder."""
    create_package(str(folder), target, include_gitignore=True)
    with ZipFile(target) as package:
        return {item.filename: item.file_size for item in package.infolist()}


def test_the_package_is_far_below_what_the_job_server_takes(tmp_path: Path) -> None:
    names = packed(ROOT, tmp_path / "package.zip")
    size = (tmp_path / "package.zip").stat().st_size
    assert DASHBOARD_CLIENT_MAX_SIZE == 100 * MIB
    assert size < 5 * MIB, f"{size / MIB:.1f} MiB; the largest: {sorted(names, key=names.__getitem__)[-5:]}"


def test_the_package_holds_the_jobs_and_not_what_is_installed(tmp_path: Path) -> None:
    names = packed(ROOT, tmp_path / "package.zip").keys()
    sources = [path for name in ("ray_jobs", "serve", "eval") for path in (ROOT / name).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in sources if path.suffix in {".py", ".yaml", ".txt", ".sh"}}
    assert len(wanted) > 5 and wanted <= names
    left = {name.split("/")[0] for name in names}
    assert not left & {"p2e", "tests", ".git", ".venv", ".ci"}


def test_p2e_is_found_beside_the_package() -> None:
    """Where the nodes install it: with the weights that the package leaves out."""
    assert p2e.__file__
    home = Path(p2e.__file__).parent
    assert list((home / "world/base").rglob("*.safetensors")) and list((home / "world/library").rglob("*.safetensors"))


def test_secrets_media_and_old_runs_stay(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    stay = [".env", ".env.local", "keys/cluster.pem", "auth_token", "runs/a/model.bin", "ray_jobs/clip.mp4", ".venv/x"]
    stay += [
        "eval/results/big.json",
        "tests/test_x.py",
        "p2e/__init__.py",
        "build/cluster.yaml",
        "serve/cache.safetensors",
    ]
    go = ["ray_jobs/train.py", "ray_jobs/configs/world.yaml", "serve/app.py", "eval/suites/core.py", "pyproject.toml"]
    for name in stay + go:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for name in (".rayignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    assert set(packed(folder, tmp_path / "package.zip")) - {".rayignore", ".gitignore"} == set(go)
