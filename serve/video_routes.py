"""/v1/videos: jobs in the form of the OpenAI API, with cancelling and events beside it."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from p2e.errors import OutputError
from p2e.render.image import fit_image
from serve.access import IdempotencyKey, Key
from serve.answers import DeletedVideo, Video, Videos
from serve.bodies import VideoBody, video_body
from serve.content import content_response
from serve.contract import FILE_PARAMETERS, LOCATION, VIDEO_BODY, documented, event_stream, file_answers
from serve.effect_routes import MAKER_ERRORS, EffectMaker
from serve.errors import ApiError, Conflict, NotFound, QueueFull, StorageFull
from serve.job import ENDED, Idempotency, Job
from serve.keys import ApiKey
from serve.pictures import PictureTooLarge, UnsupportedPicture, WrongPicture, decode_picture
from serve.schemas import Unprocessable, clip_settings, video_object
from serve.services import Services
from serve.webhook_urls import Forbidden, checked_target

__all__ = ["Gone", "NotThereYet", "video_routes"]


class NotThereYet(ApiError):
    """A video that has not been rendered."""

    status, code = 409, "not_ready"


class Gone(ApiError):
    """A video that was kept for its time."""

    status, code = 410, "expired"


CREATE_ERRORS = (*MAKER_ERRORS, PictureTooLarge, UnsupportedPicture, WrongPicture, QueueFull)
EVENTS = ("progress", *ENDED)
FOLLOWED = (
    "An event whenever the video has changed; one named after an end is the last. The stream ends after a time all the "
    "same: ask again."
)


def video_routes(services: Services, maker: EffectMaker) -> APIRouter:
    routes, settings = APIRouter(prefix="/v1/videos", tags=["videos"]), services.settings
    jobs, artefacts = services.jobs, services.artefacts

    def shown(job: Job) -> dict[str, Any]:
        return video_object(job, settings.model)

    @routes.post("", **documented("Queue a video", Video, headers=LOCATION, errors=CREATE_ERRORS, body=VIDEO_BODY))
    async def create(request: Request, key: Key, idempotency_key: IdempotencyKey = None) -> JSONResponse:
        """Queues a video: a picture to begin with, a prompt, and an effect by its id or in words."""
        body = await video_body(request)
        asked = Idempotency.of(idempotency_key, body.plain) if idempotency_key else None
        job = await _submitted(services, maker, key, body, asked)
        return JSONResponse(shown(job), headers={"location": f"/v1/videos/{job.id}"})

    @routes.get("", **documented("List videos", Videos, errors=(NotFound, Unprocessable)))
    def page(
        key: Key,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        """Videos of the caller, newest first."""
        found = jobs.page(key.name, after=after, limit=limit, order=order)
        data = [shown(job) for job in found.jobs]
        return {
            "object": "list", "data": data, "has_more": found.has_more, "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }  # fmt: skip

    @routes.get("/{job_id}", **documented("Read a video", Video, errors=(NotFound,)))
    def read(job_id: str, key: Key) -> dict[str, Any]:
        """A video of the caller, with its progress."""
        return shown(jobs.get(job_id, key.name))

    @routes.get(
        "/{job_id}/content",
        **documented(
            "Fetch the file", answers=file_answers("video/mp4", "The video."),
            errors=(NotFound, NotThereYet, Gone, Unprocessable), parameters=FILE_PARAMETERS,
        ),
    )  # fmt: skip
    def content(job_id: str, key: Key, request: Request, variant: Literal["video"] = "video") -> Response:
        """The video, as mp4; OpenAI's other variants are refused."""
        job = jobs.get(job_id, key.name)
        if job.status != "completed":
            raise NotThereYet(f"video {job_id} is {job.status}")
        if job.artefact is None:
            raise Gone(f"video {job_id} has expired")
        return content_response(
            request.headers, artefacts, job.artefact, etag=job.artefact.partition(".")[0], media_type="video/mp4",
            filename=f"{job.id}.mp4",
        )  # fmt: skip

    @routes.post("/{job_id}/cancel", **documented("Cancel a video", Video, errors=(NotFound, Conflict)))
    def cancel(job_id: str, key: Key) -> dict[str, Any]:
        """Ends a video that waits, or asks its renderer to stop, which it does within a step."""
        return shown(jobs.cancel(job_id, key.name))

    @routes.delete("/{job_id}", **documented("Delete a video", DeletedVideo, errors=(NotFound, Conflict)))
    async def delete(job_id: str, key: Key) -> dict[str, Any]:
        """Deletes a video; one that has not ended is cancelled first."""
        job = await run_in_threadpool(jobs.get, job_id, key.name)
        if not job.ended:
            try:
                job = await run_in_threadpool(jobs.cancel, job_id, key.name)
            except Conflict:  # it ended at this moment
                job = await run_in_threadpool(jobs.get, job_id, key.name)
        deadline = time.monotonic() + settings.delete_wait_s
        while not job.ended and time.monotonic() < deadline:
            await asyncio.sleep(settings.poll_s)
            job = await run_in_threadpool(jobs.get, job_id, key.name)
        artefact = await run_in_threadpool(jobs.delete, job_id, key.name)
        for name in (artefact, job.request.get("picture")):
            if name is not None:
                await run_in_threadpool(artefacts.remove, name)
        return {"id": job_id, "object": "video.deleted", "deleted": True}

    @routes.get(
        "/{job_id}/events",
        **documented("Follow a video", answers=event_stream(FOLLOWED, EVENTS, Video), errors=(NotFound,)),
    )
    async def events(job_id: str, key: Key) -> StreamingResponse:
        """Server-sent events: the video whenever it has changed, until it has ended."""
        first = await run_in_threadpool(jobs.get, job_id, key.name)

        async def stream() -> AsyncIterator[str]:
            job, last = first, None
            deadline = time.monotonic() + settings.events_s
            while True:
                if (text := json.dumps(shown(job))) != last:
                    yield f"event: {job.status if job.ended else 'progress'}\ndata: {text}\n\n"
                    last = text
                if job.ended or time.monotonic() > deadline:
                    return
                await asyncio.sleep(settings.poll_s)
                try:
                    job = await run_in_threadpool(jobs.get, job_id, key.name)
                except NotFound:  # it was deleted, at which nothing can be answered any more
                    return

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    return routes


async def _submitted(
    services: Services, maker: EffectMaker, key: ApiKey, body: VideoBody, idempotency: Idempotency | None
) -> Job:
    """Checks everything, makes the effect where it is given in words, stores the picture, and queues the job."""
    settings, request = services.settings, body.request
    told = {} if request.webhook_url is None else {"webhook": _told(services, key, request.webhook_url)}
    clip = clip_settings(request, settings.render, settings.limits)
    picture = await run_in_threadpool(decode_picture, body.picture, settings.pictures)
    effect = None
    if request.effect_id is not None:
        effect = await run_in_threadpool(services.effects.get, request.effect_id, key.name)
    elif request.effect_prompt is not None:
        effect = await maker.prompt(key, request.effect_prompt)
    name = f"picture_{secrets.token_hex(16)}.png"

    def store() -> Job:
        try:
            with services.artefacts.writing(name) as path:
                fit_image(picture, clip.height, clip.width).save(path, "PNG")
        except OutputError:
            raise StorageFull("the picture could not be stored; try again later", retry_after_s=30) from None
        kept = False
        try:
            job, kept = services.jobs.submit(
                key.name,
                {
                    "prompt": request.prompt, "clip": clip.model_dump(mode="json"), "seed": request.seed,
                    "strength": request.strength, "picture": name, "lora": None if effect is None else effect.artefact,
                } | told,
                steps=clip.steps, effect_id=None if effect is None else effect.id,
                lora=None if effect is None else effect.artefact, idempotency=idempotency, owner_limit=key.jobs,
            )  # fmt: skip
            return job
        finally:
            if not kept:
                services.artefacts.remove(name)

    return await run_in_threadpool(store)


def _told(services: Services, key: ApiKey, url: str) -> dict[str, str]:
    """What a job keeps of whom its end is told.

    Raises:
        Unprocessable: the URL is not allowed, or there is nothing to sign with.
    """
    try:
        checked_target(url, services.webhooks)
    except Forbidden as error:
        raise Unprocessable(f"webhook_url: {error}", param="webhook_url") from None
    if services.keys.webhook_secret(key.name, services.webhooks.secret) is None:
        message = "webhook_url: there is no secret to sign webhooks with; ask the operator for a webhook_secret"
        raise Unprocessable(message, param="webhook_url")
    return {"url": url, "model": services.settings.model}
