"""POST /v1/facts: what is taken, what is refused, and what it says."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from deploy.serve.failures import Refused
from deploy.serve.settings import Limits
from deploy.serve.writing import Deletion, Upsert
from memory_store.errors import ShardUnavailable
from pipeline.stated import StatedFact

Converse = Callable[..., Any]

RIGHT = {"authorization": "Bearer a token that is long enough"}
PERU: dict[str, Any] = {"subject_id": "peru", "relation": "capital", "object_ids": ["lima"]}


def write(converse: Converse, *, limits: Limits | None = None, **request: Any) -> httpx.Response:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/facts", headers={**RIGHT, "content-type": "application/json"}, **request)

    reply: httpx.Response = converse(talk, limits=limits)
    return reply


def test_facts_and_ids_reach_the_engine_and_the_reply_names_the_generation(converse: Converse, engine: Any) -> None:
    named = {**PERU, "subject": "Peru", "aliases": ["Perú"], "objects": ["Lima"]}
    reply = write(converse, json={"upsert": [named, {**PERU, "relation": "city", "objects": [None]}]})
    assert reply.json() == {"generation": 4, "fact_ids": [str(2**62), str(2**62 + 1)], "unknown": []}
    assert write(converse, json={"delete": ["7", "9223372036854775807"]}).json()["generation"] == 5
    first, second = engine.writes
    assert isinstance(first, Upsert)
    assert first.facts[0] == StatedFact(
        subject_id="peru",
        subject="Peru",
        aliases=("Perú",),
        relation="capital",
        object_ids=("lima",),
        objects=("Lima",),
    )
    assert first.facts[1].objects == (None,)
    assert second == Deletion(fact_ids=[7, 2**63 - 1])


HOSTILE: dict[str, Any] = {
    "neither": {},
    "both": {"upsert": [PERU], "delete": ["1"]},
    "a list": [PERU],
    "no facts": {"upsert": []},
    "no ids": {"delete": []},
    "too many ids": {"delete": ["1"] * 4},
    "too many facts": {"upsert": [PERU] * 4},
    "an id as a number": {"delete": [1]},
    "a negative id": {"delete": ["-1"]},
    "a long id": {"delete": ["1" * 20]},
    "an id with a sign of another script": {"delete": ["٣"]},
    "an id that is a path": {"delete": ["../1"]},
    "no relation": {"upsert": [{"subject_id": "a", "object_ids": ["b"]}]},
    "no objects": {"upsert": [{**PERU, "object_ids": []}]},
    "too many objects": {"upsert": [{**PERU, "object_ids": ["a"] * 5}]},
    "a blank subject": {"upsert": [{**PERU, "subject_id": " "}]},
    "a long subject": {"upsert": [{**PERU, "subject_id": "a" * 21}]},
    "null as a relation": {"upsert": [{**PERU, "relation": None}]},
    "a number as an alias": {"upsert": [{**PERU, "aliases": [1]}]},
    "a fact id of its own": {"upsert": [{**PERU, "fact_id": "1"}]},
    "a vector of its own": {"upsert": [{**PERU, "vector": [0.0]}]},
    "facts in facts": {"upsert": [[PERU]]},
    "NaN": '{"upsert": [{"subject_id": NaN, "relation": "r", "object_ids": ["o"]}]}',
    "a text that no text can hold": '{"upsert": [{"subject_id": "\\ud800", "relation": "r", "object_ids": ["o"]}]}',
    "deep": '{"upsert": ' + "[" * 50_000 + "]" * 50_000 + "}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_that_is_no_write_is_refused(converse: Converse, engine: Any, name: str) -> None:
    body = HOSTILE[name]
    request = {"content": body} if isinstance(body, str) else {"json": body}
    reply = write(converse, limits=Limits(facts=3, objects=4, text_chars=20), **request)
    assert reply.status_code in (400, 422), reply.text
    assert reply.json()["error"].keys() == {"type", "message", "request_id"}
    assert "Request" not in reply.text, "names of our classes are no places in a body"
    assert engine.writes == []


def test_the_message_says_where_the_body_is_wrong(converse: Converse) -> None:
    reply = write(converse, json={"upsert": [PERU, {**PERU, "object_ids": ["ok", ""]}]})
    assert reply.json()["error"]["message"].startswith("upsert.1.object_ids.1: ")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused("conflict", "another model"), 409),
        (ShardUnavailable("shard 1 at /secret"), 503),
        (OSError("/secret"), 500),
    ],
)
def test_a_write_that_fails_says_no_more_than_it_should(
    converse: Converse, engine: Any, error: Exception, status: int
) -> None:
    engine.fail_with = error
    reply = write(converse, json={"delete": ["1"]})
    assert reply.status_code == status
    assert "secret" not in reply.text


def test_more_writes_than_may_wait_are_refused_and_the_others_go_on(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> list[int]:
        engine.hold.clear()
        body = {"delete": ["1"]}
        waiting = [asyncio.ensure_future(client.post("/v1/facts", json=body, headers=RIGHT)) for _ in range(2)]
        while not engine.writes:
            await asyncio.sleep(0.001)
        refused = await client.post("/v1/facts", json=body, headers=RIGHT)
        engine.hold.set()
        done = [(await one).status_code for one in waiting]
        again = await client.post("/v1/facts", json=body, headers=RIGHT)
        assert refused.headers["retry-after"]
        return [refused.status_code, *done, again.status_code]

    assert converse(talk, limits=Limits(writing=2)) == [429, 200, 200, 200]


def test_a_write_that_takes_too_long_is_answered_and_goes_on(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> int:
        engine.hold.clear()
        reply = await client.post("/v1/facts", json={"delete": ["1"]}, headers=RIGHT)
        engine.hold.set()
        return reply.status_code

    assert converse(talk, limits=Limits(deadline_s=0.01)) == 503
    assert engine.generation == 4
