"""What a worker does for one effect of a library: look whether it is done, and train it."""

import shutil
import time
from pathlib import Path
from typing import Any

from p2e.adapt.cache import digest_of
from p2e.adapt.config import FineTuneConfig
from p2e.config import Settings
from p2e.errors import InputError
from p2e.files import SafetensorsFile, atomic_path, sha256, write_text
from ray_jobs.attempts import Attempts

__all__ = ["Record", "Work", "find_record", "train_effect"]

RECIPE = "1"
"""Version of how effects are trained; a change of it trains all of them anew."""

ENDING = ".safetensors"


class Work(Settings):
    """One effect to be trained; paths are absolute.

    Attributes:
        effect: its name.
        clips, base, init, output: folders and files.
        weights: digest of the base's folders.
        settings: the recipe, with what the base is to decide left unset.
        digest: of all that the LoRA depends on, once it is known.
    """

    effect: str
    clips: str
    base: str
    weights: str
    init: tuple[str, ...]
    settings: FineTuneConfig
    output: str
    device: str
    digest: str = ""


class Record(Settings):
    """A trained effect: kept as JSON when all its files are in place.

    Attributes:
        digest: of all that it depends on.
        files: expert, or "" where there is one file, -> name in the folder of LoRAs.
        sha256: of each file.
        loss: mean of the last steps, None where it is not a number.
        seconds: of the run that finished it.
    """

    digest: str
    files: dict[str, str]
    sha256: dict[str, str]
    loss: float | None
    seconds: float


def _record_path(work: Work) -> Path:
    return Path(work.output) / "records" / f"{work.effect}.json"


def find_record(work: Work) -> dict[str, Any]:
    """The digest of an effect, and its record where it is trained already and its files are whole.

    Raises:
        InputError: clips or init cannot be read.
    """
    from p2e.adapt.clips import list_clips

    settings = work.settings.model_dump_json(exclude={"cache", "save_every"}, exclude_unset=True)
    parts: list[str] = [RECIPE, work.weights, settings]
    for clip in list_clips(work.clips):
        parts += [_digest(clip.video), clip.caption]
    digest = digest_of(*parts, *(_digest(Path(path)) for path in work.init))
    path = _record_path(work)
    if path.is_file():
        record = Record.load(path)
        loras = Path(work.output) / "loras"
        if record.digest == digest and all(
            (loras / name).is_file() and sha256(loras / name) == record.sha256[expert]
            for expert, name in record.files.items()
        ):
            return {"digest": digest, "record": record.model_dump()}
    return {"digest": digest, "record": None}


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:
        raise InputError(f"{path}: cannot be read; check the path") from None


def train_effect(work: Work, attempts: Attempts) -> dict[str, Any]:
    """Trains one effect -> its record.

    It is trained in a folder named by its digest, where a run that was cut off finds its state again, and put among
    the LoRAs when it is whole.

    Raises:
        InputError: clips, base or settings cannot be used, or the effect killed its worker too often.
        OutputError: a file cannot be written.
    """
    from p2e.adapt.run import adapt, config_path
    from p2e.commands.options import quiet_libraries

    attempts.begin(work.digest)
    quiet_libraries()
    start = time.monotonic()
    folder = Path(work.output) / "work" / work.digest[:32]
    target = folder / f"{work.effect}{ENDING}"
    if not config_path(target).is_file():  # which is written last
        adapt(work.clips, work.base, target, work.settings, init=list(work.init) or None, device=work.device)
    record = _collect(work, folder, config_path(target), time.monotonic() - start)
    write_text(_record_path(work), record.to_json())
    shutil.rmtree(folder, ignore_errors=True)
    return record.model_dump()


def _collect(work: Work, folder: Path, config: Path, seconds: float) -> Record:
    """Copies what was trained to the LoRAs."""
    loras = Path(work.output) / "loras"
    files, digests, losses = {}, {}, ""
    for path in sorted(folder.glob(f"*{ENDING}")):
        expert = path.name.removesuffix(ENDING)[len(work.effect) :].lstrip("_")
        _copy(path, loras / path.name)
        files[expert], digests[expert] = path.name, sha256(path)
        with SafetensorsFile(path) as file:
            losses = file.metadata.get("p2e.loss", "")
    _copy(config, loras / config.name)
    numbers = [float(loss) for loss in losses.split()]
    loss = sum(numbers) / len(numbers) if numbers else float("nan")
    finite = loss if abs(loss) < float("inf") else None
    return Record(digest=work.digest, files=files, sha256=digests, loss=finite, seconds=seconds)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
