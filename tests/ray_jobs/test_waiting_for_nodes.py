"""A job on a cluster that rests at its head alone: the autoscaler is asked for nodes, and a wait has an end."""

import sys
import time
from collections.abc import Iterator

import pytest
from local_head import ROOT, Head, local_head, processes_under

ASK = """
import sys
import ray
from p2e.errors import InputError
from ray_jobs.session import check_resources, connect

connect()
cpus, gpus, count, wait = map(float, sys.argv[1:])
try:
    check_resources(cpus, gpus, int(count), wait=wait)
except InputError as error:
    sys.exit(str(error))
print([node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]])
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with local_head(cpus=0, nodes={"gpu": {"CPU": 2, "GPU": 4}}) as head:
        yield head
    assert not processes_under(head.folder)


def ask(head: Head, *numbers: float) -> tuple[str, list[str]]:
    """Output, and lines on stderr, of a job that needs (cpus, gpus, count, wait)."""
    done = head.run(sys.executable, "-c", ASK, *map(str, numbers), cwd=ROOT)
    assert done.returncode in (0, 1)
    return done.stdout, done.stderr.splitlines()


def test_nodes_are_asked_for_and_awaited(head: Head) -> None:
    start = time.monotonic()
    out, said = ask(head, 1, 9, 1, 3)
    assert out == "" and time.monotonic() - start > 3
    assert said[-2] == "waiting up to 3 s for nodes with 1 CPUs and 9 GPUs"
    assert said[-1].startswith(
        "a task asks for 1 CPUs and 9 GPUs; after 3 s the machines have 0 CPUs and 0 GPUs; ask for"
    )

    out, said = ask(head, 1, 2, 2, 60)
    assert out == "[0, 4.0]\n" or out == "[4.0, 0]\n"
    assert said[-1] == "waiting up to 60 s for nodes with 2 x 1 CPUs and 2 GPUs"

    out, said = ask(head, 1, 4, 1, 60)  # they are there now
    assert out and not any(line.startswith("waiting") for line in said)

    out, said = ask(head, 1, 2, 3, 3)  # room for two of the three
    assert out == "" and "3 x 1 CPUs and 2 GPUs; after 3 s" in said[-1]
