"""Makes the world from nothing, stage by stage: `p2e world rebuild`, or `torchrun -m p2e.world.rebuild`.

`p2e.world.pipeline` has the stages in order; text and captions, the token states of all prompts, need no GPU. Each
reads what the stages before it wrote into DIR; one that is done is skipped (`p2e.world.stages` says when that is), so
the same command goes on where it was paused or cut off.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from p2e.config import Settings
from p2e.errors import InputError, P2EError
from p2e.world.parallel import join, leave
from p2e.world.pause import PAUSED, Paused
from p2e.world.pipeline import STAGES
from p2e.world.runner import plan, run_stages
from p2e.world.stages import Verdict

__all__ = ["STAGES", "check", "main", "run", "status"]


def check(
    stages: Sequence[str], pairs: Sequence[str], force: Sequence[str] = (), adopt: Sequence[str] = ()
) -> dict[str, Settings]:
    """The settings of every stage, changed by `pairs` such as "vae.max_seconds=60" or "hypernet.loss.update=1".

    Raises:
        InputError: there is no such stage or setting, or `force` names a stage that is not to run.
    """
    for stage in (*stages, *force, *adopt):
        if stage not in STAGES:
            raise InputError(f"no stage is named {stage!r}; the stages are {', '.join(STAGES)}")
    if stages and (others := [stage for stage in force if stage not in stages]):
        raise InputError(f"--force {others[0]}: not among the stages to run; name it there too")
    changes: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        stage, *path = key.split(".")
        if stage not in STAGES or not path or not equals:
            raise InputError(f"{pair!r} is not a setting; write STAGE.KEY=JSON, such as vae.steps=100")
        target = changes[stage]
        for step in path[:-1]:
            target = target.setdefault(step, {})
            if not isinstance(target, dict):
                raise InputError(f"{pair!r}: {step} is set to a value before; keep one of the two")
        try:
            target[path[-1]] = json.loads(value)
        except ValueError:
            raise InputError(f"{pair!r}: the value is not JSON; quote a text, such as '\"float32\"'") from None
    return {name: stage.settings(changes[name]) for name, stage in STAGES.items()}


def run(
    stages: Sequence[str], out: Path, pairs: Sequence[str] = (), *, force: Sequence[str] = (),
    adopt: Sequence[str] = (), pause_after: float | None = None,
) -> None:  # fmt: skip
    """Makes the stages named, or all, in this process, one of those that torchrun started where it did.

    Args:
        out: DIR.
        pairs: changed settings.
        force: stages that run even if they are done.
        adopt: stages whose outputs were made elsewhere and copied into `out`.
        pause_after: seconds.

    Raises:
        Paused: the time is up, or SIGTERM came; the same call goes on.
        InputError: see `check`; or an input of a stage is missing, and the message names the stage to run.
    """
    settings = check(stages, pairs, force, adopt)
    run_stages(STAGES, stages or list(STAGES), out, settings, join(), force=force, adopt=adopt, pause_after=pause_after)


def status(out: Path, pairs: Sequence[str] = ()) -> Iterator[tuple[str, Verdict]]:
    """What a run of all stages with these settings would find."""
    return plan(STAGES, out, check((), pairs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0 done, 2 a mistake, 75 paused."""
    parser = argparse.ArgumentParser(prog="p2e.world.rebuild", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="pairs", metavar="STAGE.KEY=JSON")
    parser.add_argument("--force", action="append", default=[], metavar="STAGE")
    parser.add_argument("--adopt", action="append", default=[], metavar="STAGE")
    parser.add_argument("--pause-after", type=float, metavar="SECONDS")
    given = parser.parse_args(arguments)
    first = os.environ.get("RANK", "0") == "0"
    try:
        run(given.stages, given.out, given.pairs, force=given.force, adopt=given.adopt, pause_after=given.pause_after)
    except Paused as paused:
        if first:
            print(paused, flush=True)
        leave()
        sys.exit(PAUSED)
    except P2EError as error:
        if first:
            print(f"p2e: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    leave()


if __name__ == "__main__":
    main()
