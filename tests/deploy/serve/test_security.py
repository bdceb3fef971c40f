"""Tokens, hostile bodies and addresses: always a typed refusal, never a trace of the inside."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.serve.guard import describe
from deploy.serve.settings import Access, Limits, ServeSettings, Source
from memory_store.errors import ConfigError

Converse = Callable[..., Any]

TOKEN = "a token that is long enough"
JSON = {"content-type": "application/json"}
INSIDE = ("Traceback", ".py", "/work", "site-packages", "password", "secret", "line ")


def assert_refused(reply: httpx.Response, *statuses: int) -> None:
    """A 4xx of ours: JSON of one error, which names nothing inside."""
    assert reply.status_code in statuses, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"type", "message", "request_id"}
    assert not [word for word in INSIDE if word in reply.text]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        "Bearer " + "é" * 30,
        "Bearer " + hashlib.sha256(TOKEN.encode()).hexdigest(),
    ],
)
def test_without_the_right_token_nothing_is_written(converse: Converse, engine: Any, authorization: str | None) -> None:
    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        headers: Any = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
        return [
            await client.post("/v1/refresh", headers=headers),
            await client.post("/v1/facts", headers=headers, json={"delete": ["1"]}),
            await client.post("/v1/facts", headers=headers, content=b"no body at all"),
        ]

    for reply in converse(talk):
        assert_refused(reply, 401)
        assert reply.headers["www-authenticate"] == "Bearer"
    assert engine.generation == 3
    assert engine.writes == []


def test_a_service_without_a_token_refuses_every_write(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post("/v1/refresh"),
            await client.post("/v1/refresh", headers={"authorization": "Bearer "}),
            await client.post("/v1/facts", json={"delete": ["1"]}, headers={"authorization": f"Bearer {TOKEN}"}),
        ]

    for reply in converse(talk, token=None):
        assert_refused(reply, 403)
    assert engine.generation == 3
    assert engine.writes == []


@pytest.mark.parametrize(
    "path", ["/v1/facts%0A", "/v1/refresh%0A", "/v1/facts/", "//v1/facts", "/V1/facts", "/v1/facts;"]
)
def test_no_other_spelling_of_an_address_goes_round_the_token(converse: Converse, engine: Any, path: str) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(path, json={"delete": ["1"]})

    assert_refused(converse(talk), 404)
    assert_refused(converse(talk, reads=True), 401)
    assert engine.generation == 3
    assert engine.writes == []


def test_under_a_prefix_the_same_addresses_need_the_token(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> list[int]:
        right = {"authorization": f"Bearer {TOKEN}"}
        replies = [
            await client.post("/hmn/v1/facts", json={"delete": ["1"]}),
            await client.post("/v1/facts", json={"delete": ["1"]}),
            await client.get("/hmn/healthz"),
            await client.post("/hmn/v1/ask", json={"text": "who"}),
            await client.post("/hmn/v1/facts", json={"delete": ["1"]}, headers=right),
        ]
        return [reply.status_code for reply in replies]

    assert converse(talk, prefix="/hmn") == [401, 401, 200, 200, 200]
    assert len(engine.writes) == 1
    assert converse(talk, prefix="/hmn", reads=True) == [401, 401, 200, 401, 200]


def test_the_token_can_be_asked_for_everything_but_health(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> list[int]:
        right = {"authorization": f"bearer  {TOKEN}"}
        replies = [
            await client.post("/v1/ask", json={"text": "who"}),
            await client.get("/metrics"),
            await client.get("/openapi.json"),
            await client.get("/healthz"),
            await client.get("/readyz"),
            await client.post("/v1/ask", json={"text": "who"}, headers=right),
        ]
        return [reply.status_code for reply in replies]

    assert converse(talk, reads=True) == [401, 401, 401, 200, 200, 200]


@pytest.mark.parametrize(("token", "reads"), [("short", False), ("", True), (None, True)])
def test_a_token_that_protects_nothing_is_refused_at_the_start(token: str | None, reads: bool) -> None:
    with pytest.raises(ConfigError, match="HMN_TOKEN"):
        Access.from_token(token, reads=reads)


def test_settings_never_show_the_token_or_the_place_of_the_memory() -> None:
    settings = ServeSettings(
        source=Source(run_dir="run", memory="s3://user:password@bucket/memory"), access=Access.from_token(TOKEN)
    )
    assert TOKEN not in repr(settings)
    assert "password" not in repr(settings)
    assert hashlib.sha256(TOKEN.encode()).hexdigest() not in repr(settings)


HOSTILE = {
    "nothing": b"",
    "not JSON": b"text=who",
    "not UTF-8": b"\xff\xfe",
    "half a string": b'{"text": "who',
    "NaN": b'{"text": NaN}',
    "NaN as k": b'{"text": "who", "k": NaN}',
    "infinite k": b'{"text": "who", "k": 1e999}',
    "k of zero": b'{"text": "who", "k": 0}',
    "k of minus one": b'{"text": "who", "k": -1}',
    "k beyond the limit": b'{"text": "who", "k": 101}',
    "k of 5,000 digits": b'{"text": "who", "k": ' + b"9" * 5000 + b"}",
    "k as text": b'{"text": "who", "k": "5"}',
    "k as truth": b'{"text": "who", "k": true}',
    "k and a half": b'{"text": "who", "k": 1.5}',
    "an unknown key": b'{"text": "who", "sql": "drop"}',
    "a key that no text can hold": b'{"text": "who", "\\ud800": 1}',
    "a text that no text can hold": b'{"text": "\\ud800"}',
    "no text": b'{"k": 3}',
    "empty text": b'{"text": ""}',
    "blank text": b'{"text": " \\n "}',
    "long text": b'{"text": "' + b"a" * 1001 + b'"}',
    "no texts": b'{"text": []}',
    "too many texts": b'{"text": [' + b",".join([b'"a"'] * 65) + b"]}",
    "a blank among texts": b'{"text": ["a", ""]}',
    "texts in texts": b'{"text": [["a"]]}',
    "an object as text": b'{"text": {"a": "b"}}',
    "null": b"null",
    "a list": b"[1]",
    "deep lists": b"[" * 100_000,
    "deep lists in text": b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"a":' * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_refused(converse: Converse, engine: Any, name: str) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/ask", content=HOSTILE[name], headers=JSON)

    assert_refused(converse(talk), 400, 422)
    assert engine.sizes == []


@pytest.mark.parametrize(
    "vectors",
    [
        *(
            "[[NaN, 0, 0, 0]]",
            "[[Infinity, 0, 0, 0]]",
            "[[1e999, 0, 0, 0]]",
            "[[1e308, 0, 0, 0]]",
            "[[]]",
            "[]",
            "[0, 0]",
        ),
        *('[["0", 0, 0, 0]]', "[[null, 0, 0, 0]]", "[[true, 0, 0, 0]]", "[[[0]]]", '{"0": [0, 0, 0, 0]}', "null"),
    ],
)
def test_vectors_that_are_not_finite_numbers_are_refused(converse: Converse, engine: Any, vectors: str) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/search", content='{"vectors": ' + vectors + "}", headers=JSON)

    assert_refused(converse(talk), 422)
    assert engine.sizes == []


def test_a_body_beyond_the_limit_is_refused_by_its_announcement_and_by_its_bytes(
    converse: Converse, engine: Any
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post("/v1/ask", content=b" " * 2_000_000, headers=JSON),
            await client.post("/v1/ask", content=endless(), headers=JSON),
            await client.post("/v1/ask", content=b"{}", headers={**JSON, "content-length": "9" * 40}),
            await client.post("/v1/nowhere", content=b" " * 2_000_000, headers=JSON),
        ]

    for reply in converse(talk):
        assert_refused(reply, 413)
    assert engine.sizes == []


def test_a_body_that_trickles_is_given_up(converse: Converse) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/ask", content=trickle(), headers=JSON)

    assert_refused(converse(talk, limits=Limits(body_s=0.01)), 408)


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({"content-type": "text/plain"}, (415, 422)),
        ({"content-type": "application/x-www-form-urlencoded"}, (415, 422)),
        ({**JSON, "content-encoding": "gzip"}, (415,)),
        ({**JSON, "content-length": "-1"}, (400,)),
        ({**JSON, "content-length": "many"}, (400,)),
    ],
)
def test_other_kinds_of_bodies_are_refused(
    converse: Converse, headers: dict[str, str], statuses: tuple[int, ...]
) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/ask", content=b'{"text": "who"}', headers=headers)

    assert_refused(converse(talk), *statuses)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/v1/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/v1/ask/../../x",
            "//etc/passwd",
            "/v1/ask%00",
            "/docs/../x",
        ),
        *("/v1/memory/7", "/static/..%5c..%5cx", "/" + "a" * 5000, "/%ff", "/v1/facts/7"),
    ],
)
def test_no_address_leads_out_of_the_routes(converse: Converse, path: str) -> None:
    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get(path), await client.post(path, json={"text": "who"})]

    for reply in converse(talk):
        assert_refused(reply, 404)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/ask"), ("DELETE", "/v1/memory"), ("PUT", "/metrics"), ("BREW", "/v1/ask")]
)
def test_another_method_is_refused_with_the_right_one(converse: Converse, method: str, path: str) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(method, path)

    reply = converse(talk)
    assert_refused(reply, 405)
    assert reply.headers["allow"] in ("GET", "POST")


def test_what_fails_inside_is_logged_without_credentials(
    converse: Converse, engine: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        engine.poison = "poison"
        return await client.post("/v1/ask", json={"text": "poison"})

    monkeypatch.delenv("HMN_DEBUG", raising=False)
    with caplog.at_level(logging.DEBUG, "hmn.serve"):
        reply = converse(talk)
    assert reply.headers["x-request-id"] in caplog.text
    assert "RuntimeError at conftest.py" in caplog.text
    assert "password" not in caplog.text


def test_a_trace_that_was_asked_for_holds_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMN_DEBUG", "1")
    try:
        raise OSError("cannot open s3://user:password@bucket/memory")
    except OSError as error:
        shown = describe(error)
    assert "Traceback" in shown
    assert "password" not in shown


# Any JSON at all, most of it near what the service takes
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
NEAR_ASK = st.fixed_dictionaries(
    {}, optional={"text": st.text(max_size=8) | st.lists(st.text(max_size=4)) | ANY_JSON, "k": st.integers() | ANY_JSON}
)
NEAR_SEARCH = st.fixed_dictionaries(
    {},
    optional={
        "vectors": st.lists(st.lists(st.floats(), min_size=4, max_size=4)) | ANY_JSON,
        "k": st.integers(-1, 101) | ANY_JSON,
    },
)


@given(bodies=st.lists(ANY_JSON | NEAR_ASK | NEAR_SEARCH, min_size=20, max_size=20))
@settings(
    max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck)
)  # the fixture is one double for all examples, which is as good
def test_no_json_makes_the_service_fail(converse: Converse, bodies: list[Any]) -> None:
    import json

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post(path, content=json.dumps(body).encode(), headers=JSON)
            for body in bodies
            for path in ("/v1/ask", "/v1/search")
        ]

    for reply in converse(talk):
        if reply.status_code != 200:
            assert_refused(reply, 400, 422)
