"""A run's folder, put in order before Ray Train reads it.

Ray Train lists a run's checkpoints in one JSON file, which it rewrites in place. A machine that dies meanwhile leaves
half of it, or a list with a checkpoint that is no longer there, and Ray Train refuses the whole folder.
"""

import json
import logging
import posixpath

import fsspec
import ray
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState, _TrainingResultState

from p2e.errors import InputError
from p2e.files import read_text, write_text
from ray_jobs.training.checkpoints import MANIFEST

__all__ = ["LIST", "mend"]

LIST = "checkpoint_manager_snapshot.json"
log = logging.getLogger(__name__)


def mend(output: str) -> None:
    """Lists anew the checkpoints that are there, where the list is broken or names others.

    Args:
        output: the run's folder, local or an fsspec URL; it need not exist.
    """
    file_system, inner = fsspec.core.url_to_fs(output)
    if not file_system.exists(f"{inner}/{LIST}"):
        return
    try:
        listed = json.loads(read_text(f"{output}/{LIST}"))["checkpoint_results"]
        names = [entry["checkpoint_dir_name"] for entry in listed]
    except (InputError, ValueError, KeyError, TypeError):
        names = None
    if names is not None and all(file_system.exists(f"{inner}/{name}") for name in names):
        return
    steps: dict[str, int] = {}
    for path in file_system.ls(inner, detail=False):
        name = posixpath.basename(path.rstrip("/"))
        try:
            steps[name] = int(json.loads(read_text(f"{output}/{name}/{MANIFEST}"))["step"])
        except (InputError, OSError, ValueError, KeyError, TypeError):
            continue  # no checkpoint, or a broken one
    found = [
        _TrainingResultState(checkpoint_dir_name=name, metrics={"step": step})
        for name, step in sorted(steps.items(), key=lambda item: item[1])
    ]
    log.warning("%s: the list of checkpoints was broken; %d were found", output, len(found))
    state = _CheckpointManagerState(
        ray_version=ray.__version__, checkpoint_results=found, checkpoint_report_indices=list(range(len(found))),
        latest_checkpoint_result=found[-1] if found else None, pending_training_results=[],
        pending_validation_specs=[], current_report_index=len(found), validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[], failed_validation_checkpoint_dir_names=[],
    )  # fmt: skip
    write_text(f"{output}/{LIST}", state.model_dump_json())
