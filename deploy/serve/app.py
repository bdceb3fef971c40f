"""The HTTP application: routes over a Service, behind a Guard; knows nothing of Ray."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from deploy.serve.docs_page import add_docs_page
from deploy.serve.engine import Engine
from deploy.serve.failures import STATUSES, Refused, of_status
from deploy.serve.guard import OPEN, WRITES, Guard
from deploy.serve.metrics import CONTENT_TYPE
from deploy.serve.schema import (
    FACT_ID,
    NOT_BLANK,
    AskReply,
    DeleteRequest,
    ErrorReply,
    HealthReply,
    LimitsReply,
    MemoryReply,
    RefreshReply,
    SearchReply,
    ShardLine,
    UpsertRequest,
    WriteReply,
    bodies,
    write_bodies,
)
from deploy.serve.service import Service
from deploy.serve.settings import ServeSettings
from deploy.serve.writing import Deletion, Upsert, Write
from memory_store.storage import redact
from pipeline.stated import StatedFact

__all__ = ["make_app"]

LONGEST_MESSAGE_CHARS = 300
PATTERNS = {
    NOT_BLANK: "expected a text, found nothing but blanks",
    FACT_ID: "expected a fact id, a string of up to 19 digits, found something else",
}
# The page brings all that it needs, and talks to nobody but the service.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
)


def make_app(engine: Engine, settings: ServeSettings) -> FastAPI:
    """The application over an engine. Its lifespan starts the upkeep and closes the engine at the end."""
    service = Service(engine, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="hmn",
        summary="Answers to questions from a memory of facts, by K-MIPS attention.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _add_reading(app, service)
    _add_writing(app, service)
    _add_upkeep(app, service)
    _add_page(app)
    add_docs_page(app)
    _add_failures(app)
    routes = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    app.add_middleware(
        Guard, access=settings.access, limits=settings.limits, routes=routes, observe=service.metrics.request
    )
    _describe_token(app, settings)
    return app


def _add_reading(app: FastAPI, service: Service) -> None:
    ask_body, search_body = bodies(service.settings.limits)

    @app.post("/v1/ask", response_model=AskReply, responses=_errors(400, 413, 415, 422, 429, 503), tags=["read"])
    async def ask(body: ask_body) -> AskReply:  # type: ignore[valid-type]  # made from the limits
        """Answer questions: the facts read for each, with their attention weights, best first."""
        texts = [body.text] if isinstance(body.text, str) else body.text  # type: ignore[attr-defined]
        return await service.ask(texts, body.k)  # type: ignore[attr-defined]

    @app.post("/v1/search", response_model=SearchReply, responses=_errors(400, 413, 415, 422, 429, 503), tags=["read"])
    async def search(body: search_body) -> SearchReply:  # type: ignore[valid-type]
        """The facts of largest inner product with each vector."""
        return await service.search(body.vectors, body.k)  # type: ignore[attr-defined]

    @app.get("/v1/memory", response_model=MemoryReply, tags=["read"])
    async def memory() -> MemoryReply:
        """What is served: generation, facts, dimension, model, shards, and the limits of a request."""
        status, limits = service.engine.status(), service.settings.limits
        return MemoryReply(
            generation=status.generation,
            created_at=status.created_at,
            facts=status.facts,
            dim=status.dim,
            model=status.encoder,
            checkpoint_step=status.checkpoint_step,
            index=status.index,
            backend=status.backend,
            shards=[
                ShardLine(shard=shard.shard, rows=shard.rows, bytes=shard.bytes, restarts=shard.restarts)
                for shard in status.shards
            ],
            limits=LimitsReply(
                body_bytes=limits.body_bytes,
                text_chars=limits.text_chars,
                items=limits.items,
                k=limits.k,
                facts=limits.facts,
            ),
        )


def _add_writing(app: FastAPI, service: Service) -> None:
    upsert_body, delete_body = write_bodies(service.settings.limits)

    @app.post(
        "/v1/facts",
        response_model=WriteReply,
        responses=_errors(400, 401, 403, 409, 413, 415, 422, 429, 503),
        tags=["write"],
    )
    async def facts(body: upsert_body | delete_body) -> WriteReply:  # type: ignore[valid-type]  # made from the limits
        """Upsert facts, or delete facts by id: durable, and in every answer of this replica, when this is answered.

        An upserted fact says what this request says: it takes the place of the one with its subject and relation. To
        send the same again is safe.
        """
        written = await service.write(_as_write(body))
        return WriteReply(
            generation=written.generation,
            fact_ids=[str(fact_id) for fact_id in written.fact_ids],
            unknown=[str(fact_id) for fact_id in written.unknown],
        )


def _as_write(body: UpsertRequest | DeleteRequest) -> Write:
    if isinstance(body, DeleteRequest):
        return Deletion(fact_ids=[int(fact_id) for fact_id in body.delete])
    return Upsert(
        facts=[
            StatedFact(
                subject_id=fact.subject_id,
                subject=fact.subject,
                aliases=tuple(fact.aliases),
                relation=fact.relation,
                object_ids=tuple(fact.object_ids),
                objects=tuple(fact.objects),
            )
            for fact in body.upsert
        ]
    )


def _add_upkeep(app: FastAPI, service: Service) -> None:
    @app.post("/v1/refresh", response_model=RefreshReply, responses=_errors(401, 403, 503), tags=["write"])
    async def refresh() -> RefreshReply:
        """Look for a newer generation or model now, and roll it out; answers when it is served."""
        rollout = await service.roll_out()
        return RefreshReply(moved=rollout.move.value, generation=service.engine.status().generation)

    @app.get("/healthz", response_model=HealthReply, tags=["upkeep"])
    @app.head("/healthz", include_in_schema=False)  # some load balancers ask so
    async def healthz() -> HealthReply:
        """Whether the process lives."""
        return HealthReply(status="ok")

    @app.get("/readyz", response_model=HealthReply, responses=_errors(503), tags=["upkeep"])
    @app.head("/readyz", include_in_schema=False)
    async def readyz() -> HealthReply:
        """Whether questions are answered: the model is loaded, and every shard answered when last asked."""
        if not service.engine.status().ready:
            raise Refused("unavailable", "not ready: a part of the memory does not answer", 2)
        return HealthReply(status="ok")

    @app.get("/metrics", response_class=Response, tags=["upkeep"])
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics_text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    page = (files("deploy") / "serve" / "page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def ask_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": PAGE_POLICY})


def _add_failures(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> Response:
        return _refuse(request, Refused("invalid_request", _in_words(error.errors())))

    @app.exception_handler(HTTPException)
    async def chosen_by_framework(request: Request, error: HTTPException) -> Response:
        answer = _refuse(request, of_status(error.status_code))
        if error.status_code == 405 and error.headers:
            answer.headers.update(error.headers)
        return answer


def _refuse(request: Request, refused: Refused) -> Response:
    return JSONResponse(refused.body(request.state.request_id), refused.status, refused.headers())


def _in_words(errors: Any) -> str:
    """What is wrong with a body, first things first; repeats no value that was sent, and no more of a key than fits."""
    # of the ways to read a union, the one that got furthest: what has the wrong type was meant in another way
    first = max(errors, key=lambda error: (not error["type"].endswith("_type"), len(error["loc"])))
    if first["type"] == "json_invalid":
        return "expected a body of JSON, found something else"
    # the names that pydantic gives to the branches of a union ("list[constrained-str]", "UpsertRequest") are not places
    # in the body
    place = ".".join(str(part) for part in first["loc"][1:] if re.fullmatch(r"[a-z0-9_]+", str(part)))
    if not place and first["type"].endswith("_type"):
        return "expected a JSON object, sent with the header Content-Type: application/json, found something else"
    problem = PATTERNS.get(first.get("ctx", {}).get("pattern"), first["msg"])
    if first["type"] == "extra_forbidden" and re.fullmatch(r"\w{1,60}", str(first["loc"][-1])):
        problem = f"{first['loc'][-1]!r} is no key of it"
    text = f"{place[:60] or 'body'}: {problem}"
    # what was sent may hold half of a surrogate pair, which no answer can carry
    return redact(text.encode("ascii", "backslashreplace").decode())[:LONGEST_MESSAGE_CHARS]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The failures of a route, for the OpenAPI document."""
    kinds = {status: kind for kind, status in STATUSES.items()}
    return {status: {"model": ErrorReply, "description": kinds[status].replace("_", " ")} for status in statuses}


def _describe_token(app: FastAPI, settings: ServeSettings) -> None:
    """Put the token into the OpenAPI document; the Guard is what asks for it."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in document["paths"].items():
            if path in WRITES or (settings.access.reads and path not in OPEN):
                for operation in methods.values():
                    operation["security"] = [{"token": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
