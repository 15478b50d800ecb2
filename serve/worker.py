"""The renderer's work, without Ray: claims a job, renders it, stores the clip, and says how it ended.

A thread of its own renews the lease, since encoding and decoding a long clip take longer than a step. Each denoising
step reports progress and asks whether to go on; so a cancelled job stops within a step. A job that takes longer than it
may is not renewed any more: another renderer gets it, or it ends.
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from PIL import Image

from p2e.config import RenderConfig
from p2e.errors import FormatError, InputError, OutputError
from p2e.lora.lora import Lora
from p2e.lora.read import read_lora
from p2e.render.pipeline import Renderer
from p2e.render.video import Clip, write_mp4
from serve.artefacts import ArtefactStore
from serve.counters import Counters
from serve.errors import ApiError, NotFound
from serve.job import Beat, Job
from serve.jobs import JobStore
from serve.settings import RendererSettings

__all__ = ["Clips", "HeldLoras", "VideoWorker", "open_renderer", "worker_name"]

LOG = logging.getLogger("p2e.renderer")


def open_renderer(settings: RendererSettings, render: RenderConfig) -> Renderer:
    """The renderer; `render` is what a clip has where a job says nothing.

    Raises:
        P2EError: it cannot be opened.
    """
    return Renderer.open(
        settings.base, settings.device, getattr(torch, settings.dtype), compile=settings.compile,
        attention=settings.attention, fp8=settings.fp8,
        settings=render.model_copy(update={"max_rank": settings.max_rank}),
    )  # fmt: skip


class Clips(Protocol):
    """What of a `Renderer` a worker uses."""

    base: Any

    @property
    def render(self) -> Callable[..., Clip]: ...


class Stopped(Exception):
    """The job is not to be rendered any further."""

    def __init__(self, beat: Beat) -> None:
        super().__init__(beat)
        self.beat = beat


class EffectGone(ApiError):
    """The effect of a job was deleted before its turn came."""

    status, code = 410, "effect_gone"


def worker_name() -> str:
    """Of this process, another one each time that it starts: host, process and a random word."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(4)}"


class HeldLoras:
    """The LoRAs used last, by their file, up to so many bytes.

    Args:
        read: gives the LoRA of a file.
        most_bytes: kept at most; the one in use always is.
    """

    def __init__(self, read: Any, most_bytes: float) -> None:
        self._read, self._most = read, most_bytes
        self._found: OrderedDict[str, tuple[str, Lora, int]] = OrderedDict()

    @property
    def effects(self) -> list[str]:
        """The effects whose LoRAs are here."""
        return [effect for effect, _, _ in self._found.values()]

    def get(self, effect: str, artefact: str) -> tuple[Lora, bool]:
        """The LoRA, and whether it was here."""
        known = artefact in self._found
        if not known:
            lora = self._read(artefact)
            size = sum(f.a.nbytes + f.b.nbytes for f in lora.factors.values())
            self._found[artefact] = effect, lora, size
        self._found.move_to_end(artefact)
        while len(self._found) > 1 and sum(size for _, _, size in self._found.values()) > self._most:
            self._found.popitem(last=False)
        return self._found[artefact][1], known


class VideoWorker:
    """One renderer at work on the jobs of a database.

    Args:
        clips: renders.
        jobs, artefacts, counters: of the service.
        settings: of the renderer.
        name: as `worker_name` gives it.
    """

    def __init__(
        self, clips: Clips, jobs: JobStore, artefacts: ArtefactStore, counters: Counters, settings: RendererSettings,
        name: str | None = None,
    ) -> None:  # fmt: skip
        self.clips, self.jobs, self.artefacts, self.counters = clips, jobs, artefacts, counters
        self.settings, self.name = settings, name or worker_name()
        self.held = HeldLoras(lambda name: read_lora(artefacts.url(name), clips.base), settings.held_gb * 1e9)
        self._begun: float | None = None

    @property
    def stuck(self) -> bool:
        """Whether a job has been under way for much longer than any may."""
        return self._begun is not None and time.monotonic() - self._begun > 1.5 * self.settings.most_s

    def work_once(self, ticket: str = "") -> bool:
        """Does the job whose turn it is -> whether there was one. The ticket becomes part of the worker's name, by
        which it is known again where the worker is lost."""
        job = self.jobs.claim(f"{self.name}:{ticket}", self.held.effects)
        if job is None:
            return False
        start = self._begun = time.monotonic()
        try:
            with self._renewed(job):
                self._work(job)
        finally:
            self._begun = None
        self.counters.observe("p2e_render_seconds", time.monotonic() - start)
        return True

    def _work(self, job: Job) -> None:
        """Renders a claimed job and ends it, whatever happens."""
        try:
            artefact = self._rendered(job)
        except Stopped as stopped:
            if stopped.beat is Beat.CANCEL and self.jobs.stop(job):
                self.counters.add("p2e_videos", status="cancelled", code="")
            # else it is another's now
        except ApiError as error:
            self._failed(job, error.code, error.message)
        except OutputError as error:
            LOG.error("%s: %s", job.id, error)
            self._failed(job, "storage_failed", "the video could not be stored; submit it again later")
        except InputError as error:
            LOG.warning("%s: %s", job.id, error)  # its line may name a path of the server
            self._failed(job, "cannot_render", "this cannot be rendered; use a smaller strength or other settings")
        except (torch.OutOfMemoryError, MemoryError):
            LOG.exception("%s: out of memory", job.id)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._failed(job, "out_of_memory", "the renderer ran out of memory; ask for fewer frames or pixels")
        except Exception:
            LOG.exception("%s failed", job.id)
            self._failed(job, "internal_error", "something went wrong on the server; it has been logged")
        else:
            if self.jobs.complete(job, artefact):
                self.counters.add("p2e_videos", status="completed", code="")
            else:
                self.artefacts.remove(artefact)  # it was taken from this renderer meanwhile

    def _failed(self, job: Job, code: str, message: str) -> None:
        if self.jobs.fail(job, code, message):
            self.counters.add("p2e_videos", status="failed", code=code)

    def _rendered(self, job: Job) -> str:
        """Renders a job -> its file."""
        asked, clip = job.request, RenderConfig.parse(job.request["clip"])
        lora = self._lora(job)
        with _there("the picture"), self.artefacts.open(asked["picture"]) as file:
            picture = Image.open(file).convert("RGB")

        def on_step(done: int, _steps: int) -> None:
            if (beat := self.jobs.beat(job, done)) is not Beat.GO:
                raise Stopped(beat)
            if self._late():
                raise Stopped(Beat.LOST)

        frames = self.clips.render(
            picture, asked["prompt"], lora=lora, strength=asked["strength"], seed=asked["seed"], frames=clip.frames,
            steps=clip.steps, guidance=clip.guidance, height=clip.height, width=clip.width,
            negative=clip.negative_prompt, schedule=clip.schedule, shift=clip.shift, callback=on_step,
        )  # fmt: skip
        artefact = f"{job.id}-{job.attempt}-{secrets.token_hex(4)}.mp4"
        with self.artefacts.writing(artefact) as path:
            write_mp4(path, frames, scale=self.settings.scale)
        return artefact

    def _lora(self, job: Job) -> Lora | None:
        name = job.request["lora"]
        if name is None:
            return None
        try:
            lora, known = self.held.get(job.effect_id or name, name)
        except (FormatError, NotFound) as error:
            LOG.warning("%s: %s", job.id, error)
            raise EffectGone("the effect of this video was deleted before its turn; make it again") from None
        self.counters.add("p2e_lora_hits" if known else "p2e_lora_loads")
        return lora

    def _late(self) -> bool:
        return self._begun is not None and time.monotonic() - self._begun > self.settings.most_s

    @contextlib.contextmanager
    def _renewed(self, job: Job) -> Iterator[None]:
        """The job's lease is renewed for as long as this lasts."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(self.jobs.settings.lease_s / 4):
                if self._late():
                    return
                try:
                    if self.jobs.beat(job, 0) is Beat.LOST:
                        return
                except Exception:  # a database away for a moment; the next beat may reach it
                    LOG.exception("%s: a heartbeat failed", job.id)

        thread = threading.Thread(target=renew, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@contextlib.contextmanager
def _there(what: str) -> Iterator[None]:
    try:
        yield
    except (NotFound, OSError):
        raise EffectGone(f"{what} of this video is not there any more; submit it again") from None
