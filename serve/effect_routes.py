"""/v1/effects: make, list, read, fetch, delete."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.access import IdempotencyKey, Key
from serve.answers import DeletedEffect, Effects
from serve.answers import Effect as EffectAnswer
from serve.bodies import Malformed, UnsupportedBody, json_body
from serve.content import content_response
from serve.contract import BODY_ERRORS, EFFECT_BODY, FILE_PARAMETERS, LOCATION, documented, file_answers
from serve.effects import Effect, artefact_name, effect_id
from serve.errors import Busy, Changed, Conflict, KeyReused, NotFound, QuotaExceeded, StorageFull, TooLate
from serve.flights import Flights
from serve.idempotency import claim_key
from serve.job import Idempotency
from serve.keys import ApiKey
from serve.schemas import EffectRequest, Unprocessable, parsed
from serve.services import Identity, NotReady, Services

__all__ = ["MAKER_ERRORS", "EffectMaker", "effect_routes"]

EFFECTS = "effects"
# Of whoever makes effects, and of the bodies that ask for them.
MAKER_ERRORS = (
    *BODY_ERRORS, Malformed, UnsupportedBody, NotFound, Unprocessable, KeyReused, QuotaExceeded, NotReady, Busy,
    Changed, TooLate, StorageFull,
)  # fmt: skip


class EffectMaker:
    """Answers from the store what is there, and has made what is not, once for all who ask for it at the same time.

    Args:
        services: of the gateway.
    """

    def __init__(self, services: Services) -> None:
        self.services, self.counters = services, services.counters
        self._flights: Flights[Effect] = Flights()

    async def prompt(
        self, key: ApiKey, prompt: str, strength: float = 1.0, idempotency: Idempotency | None = None
    ) -> Effect:
        """The effect of a prompt, the caller's from now on.

        Raises:
            QuotaExceeded: the caller has asked for too many new ones within a minute.
            KeyReused: the idempotency key came with another request.
            ApiError: it cannot be made.
        """
        source = {"prompt": prompt, "strength": strength + 0.0}  # -0.0 is no other effect than 0.0
        return await self._made(key, source, source, idempotency)

    async def blend(self, key: ApiKey, request: EffectRequest, idempotency: Idempotency | None = None) -> Effect:
        """The effect of a blend of effects that the caller has; raises as `prompt` does, and NotFound."""
        assert request.blend is not None
        parts = sorted((part.effect_id, part.weight + 0.0) for part in request.blend)
        found = [await run_in_threadpool(self.services.effects.get, name, key.name) for name, _ in parts]
        source = {"blend": [list(part) for part in parts], "strength": request.strength + 0.0}
        asked = [[name, effect.artefact, weight] for (name, weight), effect in zip(parts, found, strict=True)]
        return await self._made(key, source, source | {"blend": asked}, idempotency)

    async def _made(
        self, key: ApiKey, source: dict[str, Any], asked: dict[str, Any], idempotency: Idempotency | None
    ) -> Effect:
        services, identity = self.services, await self.services.predictor.identity()
        name = effect_id(source, identity.checkpoint, identity.base)
        if idempotency is not None:
            jobs = services.jobs
            await run_in_threadpool(
                claim_key, jobs.engine, key.name, EFFECTS, idempotency, name, now=jobs.clock(),
                keep_s=jobs.settings.idempotency_s,
            )  # fmt: skip
        while True:
            if (found := await run_in_threadpool(services.effects.ask, name, key.name)) is not None:
                self.counters.add("p2e_effect_hits")
                return found
            recent = await run_in_threadpool(services.effects.recent, key.name, 60)
            if recent >= key.effects_per_minute:
                raise QuotaExceeded(f"{recent} new effects within a minute; wait a little", retry_after_s=30)
            effect, new = await self._flights.join(
                name, lambda: self._predicted(key.name, name, identity, source, asked)
            )
            if new:
                return effect
            # Another request had it made, for its own caller: now it is there to be asked for.

    async def _predicted(
        self, owner: str, name: str, identity: Identity, source: dict[str, Any], asked: dict[str, Any]
    ) -> Effect:
        services = self.services
        # Somebody else's may have landed after the caller looked.
        if (found := await run_in_threadpool(services.effects.ask, name, owner)) is not None:
            self.counters.add("p2e_effect_hits")
            return found
        self.counters.add("p2e_effect_misses")
        artefact, start = artefact_name(name), time.perf_counter()
        made = await services.predictor.make(asked, artefact, identity)
        self.counters.observe("p2e_predict_seconds", time.perf_counter() - start)
        effect = Effect(
            name, source, identity.base, identity.checkpoint, made.rank, made.bytes, made.sha256, artefact,
            made.seconds, services.effects.clock(),
        )  # fmt: skip
        kept = await run_in_threadpool(services.effects.add, effect, owner)
        if kept.artefact != artefact:  # another gateway made it first
            await run_in_threadpool(services.artefacts.remove, artefact)
        return kept


def effect_object(effect: Effect, model: str) -> dict[str, Any]:
    """An effect as it is answered."""
    return {
        "id": effect.id, "object": "effect", "status": "completed", "model": model,
        "created_at": int(effect.created_at), **effect.source,
        "lora": {"rank": effect.rank, "bytes": effect.bytes, "sha256": effect.sha256},
        "seconds": round(effect.seconds, 4),
    }  # fmt: skip


def effect_routes(services: Services, maker: EffectMaker) -> APIRouter:
    routes, model = APIRouter(prefix="/v1/effects", tags=["effects"]), services.settings.model

    @routes.post(
        "",
        status_code=201,
        **documented(
            "Make an effect", EffectAnswer, status=201, headers=LOCATION, errors=MAKER_ERRORS, body=EFFECT_BODY
        ),
    )
    async def make(request: Request, key: Key, idempotency_key: IdempotencyKey = None) -> JSONResponse:
        """Makes an effect from a prompt or a blend, or finds it: the same request has the same id."""
        asked = parsed(EffectRequest, await json_body(request))
        once = Idempotency.of(idempotency_key, asked.model_dump(mode="json")) if idempotency_key else None
        if asked.prompt is not None:
            effect = await maker.prompt(key, asked.prompt, asked.strength, once)
        else:
            effect = await maker.blend(key, asked, once)
        location = {"location": f"/v1/effects/{effect.id}"}
        return JSONResponse(effect_object(effect, model), 201, headers=location)

    @routes.get("", **documented("List effects", Effects, errors=(NotFound, Unprocessable)))
    def page(
        key: Key,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        """Effects of the caller, newest first."""
        found = services.effects.page(key.name, after=after, limit=limit, order=order)
        data = [effect_object(effect, model) for effect in found.effects]
        return {
            "object": "list", "data": data, "has_more": found.has_more, "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }  # fmt: skip

    @routes.get("/{name}", **documented("Read an effect", EffectAnswer, errors=(NotFound,)))
    def read(name: str, key: Key) -> dict[str, Any]:
        """An effect of the caller."""
        return effect_object(services.effects.get(name, key.name), model)

    @routes.get(
        "/{name}/content",
        **documented(
            "Fetch the LoRA", answers=file_answers("application/octet-stream", "The LoRA."), errors=(NotFound,),
            parameters=FILE_PARAMETERS,
        ),
    )  # fmt: skip
    def content(name: str, key: Key, request: Request) -> Response:
        """The LoRA, as safetensors."""
        effect = services.effects.get(name, key.name)
        return content_response(
            request.headers, services.artefacts, effect.artefact, etag=effect.sha256,
            media_type="application/octet-stream", filename=f"{effect.id}.safetensors",
        )  # fmt: skip

    @routes.delete("/{name}", **documented("Delete an effect", DeletedEffect, errors=(NotFound, Conflict)))
    def delete(name: str, key: Key) -> dict[str, Any]:
        """Takes an effect from the caller; its LoRA goes with the last one who has it."""
        if (artefact := services.effects.drop(name, key.name)) is not None:
            services.artefacts.remove(artefact)
        return {"id": name, "object": "effect.deleted", "deleted": True}

    return routes
