"""Trains the hypernetwork on a Ray cluster: `python -m ray_jobs.train --config ray_jobs/configs/world.yaml`.

The same command runs under `ray job submit` on any number of nodes, and on one machine without a cluster. Run again
with the same `train.output`, it goes on from the newest whole checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence

import yaml

from p2e.errors import ConfigError, P2EError
from p2e.files import read_text
from ray_jobs.training.config import TrainJob, with_changes

__all__ = ["load", "main"]


def load(config: str, changes: list[str]) -> TrainJob:
    """The job of a YAML file with `a.b=value` changes.

    Raises:
        ConfigError: the file cannot be read, or a setting does not fit.
    """
    try:
        values = yaml.safe_load(read_text(config)) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{config}: not valid YAML ({' '.join(str(error).split())})") from None
    return TrainJob.parse(with_changes(values, changes), config)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.train", description="Train on a Ray cluster.")
    parser.add_argument("--config", required=True, help="YAML file of a TrainJob")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="change a setting")
    chosen = parser.parse_args(arguments)
    try:
        job = load(chosen.config, chosen.set)
        from ray_jobs.training.job import train

        print(job.to_json(), end="", flush=True)
        print(train(job))
    except P2EError as error:
        print(f"p2e: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
