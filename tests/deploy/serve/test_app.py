"""The routes: what they answer, how they batch, and how they refuse."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from deploy.serve.settings import Limits
from memory_store.errors import CorruptFile, ShardUnavailable

Converse = Callable[..., Any]


def test_one_question_is_answered_with_its_facts_and_weights(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/ask", json={"text": "who", "k": 2})

    reply = converse(talk).json()
    (answer,) = reply["answers"]
    assert answer["text"] == "who"
    assert answer["answer"] == ["answer to who"]
    assert [fact["weight"] for fact in answer["facts"]] == [1.0, 0.0]
    assert (reply["generation"], reply["coverage"], reply["model"]) == (3, 1.0, "double-1")
    assert reply["latency_ms"].keys() == {"total", "queue", "encode", "search", "fetch"}


def test_ids_beyond_what_javascript_counts_and_infinite_scores_survive_json(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/ask", json={"text": "who", "k": 2})

    facts = converse(talk).json()["answers"][0]["facts"]
    assert [fact["fact_id"] for fact in facts] == [str(2**62), str(2**62 + 1)]
    assert [fact["score"] for fact in facts] == [None, 1.0]


def test_several_questions_come_back_in_their_order(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/ask", json={"text": ["b", "a", "b"]})

    assert [answer["text"] for answer in converse(talk).json()["answers"]] == ["b", "a", "b"]


def test_requests_that_come_while_a_batch_runs_become_one_batch(
    converse: Converse, engine: Any, post_together: Any
) -> None:
    bodies = [{"text": f"q{number}", "k": 1 + number % 3} for number in range(20)]
    replies = converse(lambda client: post_together(client, bodies))
    assert engine.sizes == [1, 19]
    for body, reply in zip(bodies, replies, strict=True):
        (answer,) = reply.json()["answers"]
        assert answer["text"] == body["text"]
        assert len(answer["facts"]) == body["k"]


def test_a_full_queue_answers_429_and_says_when_to_come_back(
    converse: Converse, engine: Any, post_together: Any
) -> None:
    async def talk(client: httpx.AsyncClient) -> tuple[list[httpx.Response], httpx.Response]:
        async def one_more() -> httpx.Response:
            reply = await client.post("/v1/ask", json={"text": ["one", "too many"]})
            engine.hold.set()
            return reply

        together = asyncio.ensure_future(
            post_together(client, [{"text": "a"}, {"text": "b"}, {"text": "c"}, {"text": "d"}], release=False)
        )
        await engine_full(client)
        refused = await one_more()
        return await together, refused

    async def engine_full(client: httpx.AsyncClient) -> None:
        while "hmn_queued_items 3.0" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.001)

    accepted, refused = converse(talk, limits=Limits(items=2, batch=2, waiting=4))
    assert [reply.status_code for reply in accepted] == [200] * 4
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "overloaded"


def test_a_request_that_breaks_a_batch_fails_alone(converse: Converse, engine: Any, post_together: Any) -> None:
    engine.poison = "poison"
    bodies = [{"text": text} for text in ("first", "one", "poison", "two")]
    replies = converse(lambda client: post_together(client, bodies))
    assert [reply.status_code for reply in replies] == [200, 200, 500, 200]
    assert "secret" not in replies[2].text
    assert "password" not in replies[2].text


def test_a_vector_of_another_dimension_is_refused_and_its_neighbours_are_not(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        right, wrong = {"vectors": [[0.0] * 4], "k": 2}, {"vectors": [[0.0] * 3]}
        return await asyncio.gather(*(client.post("/v1/search", json=body) for body in (right, wrong, right)))

    replies = converse(talk)
    assert [reply.status_code for reply in replies] == [200, 422, 200]
    assert replies[0].json()["results"] == [{"fact_ids": ["0", "1"], "scores": [1.0, 0.0]}]
    assert replies[1].json()["error"]["message"] == "expected vectors of dimension 4, found 3"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ShardUnavailable("shard 1 at /secret"), 503, "unavailable"),
        (CorruptFile("/secret/part.arrow: expected 9 bytes"), 503, "unavailable"),
        (OSError("/secret"), 500, "internal"),
    ],
)
def test_what_fails_inside_is_told_without_its_message(
    converse: Converse, engine: Any, error: Exception, status: int, kind: str
) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        engine.fail_with = error
        return await client.post("/v1/ask", json={"text": "who"})

    reply = converse(talk)
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind)
    assert "secret" not in reply.text
    assert reply.json()["error"]["request_id"] == reply.headers["x-request-id"]


def test_a_request_that_waits_too_long_is_given_up(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        engine.hold.clear()
        reply = await client.post("/v1/ask", json={"text": "who"})
        engine.hold.set()
        return reply

    reply = converse(talk, limits=Limits(deadline_s=0.01))
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1


def test_readiness_follows_the_shards_and_health_does_not(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> list[int]:
        before = await client.get("/readyz")
        engine.ready = False
        return [reply.status_code for reply in (before, await client.get("/readyz"), await client.get("/healthz"))]

    assert converse(talk) == [200, 503, 200]


def test_the_memory_is_described_without_its_place(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/v1/memory")

    reply = converse(talk).json()
    assert (reply["facts"], reply["dim"], reply["generation"]) == (10, 4, 3)
    assert reply["shards"] == [{"shard": 0, "rows": 10, "bytes": 160, "restarts": 2}]
    assert "url" not in reply


def test_metrics_count_requests_stages_batches_and_what_is_served(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> str:
        engine.coverage = 0.5
        await client.post("/v1/ask", json={"text": ["a", "b"]})
        engine.coverage = 1.0
        await client.post("/v1/ask", json={"text": "c"})
        await client.get("/somewhere/else")
        return (await client.get("/metrics")).text

    lines = converse(talk).splitlines()
    assert 'hmn_http_requests_total{method="POST",route="/v1/ask",status="200"} 2.0' in lines
    assert 'hmn_http_requests_total{method="GET",route="other",status="404"} 1.0' in lines
    assert 'hmn_stage_seconds_count{stage="search"} 2.0' in lines
    assert 'hmn_stage_seconds_count{stage="queue"} 2.0' in lines
    assert "hmn_batch_items_sum 3.0" in lines
    assert "hmn_coverage 1.0" in lines
    assert "hmn_coverage_least 0.5" in lines
    assert 'hmn_shard_restarts{shard="0"} 2.0' in lines
    assert "hmn_generation 3.0" in lines
    assert any(line.startswith("hmn_generation_age_seconds ") and float(line.split()[1]) > 0 for line in lines)


def test_a_refresh_rolls_out_what_is_new(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/refresh", headers={"authorization": "Bearer a token that is long enough"})

    assert converse(talk).json() == {"moved": "generation", "generation": 4}


def test_a_rollout_that_takes_long_is_answered_and_goes_on(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        engine.hold.clear()
        reply = await client.post("/v1/refresh", headers={"authorization": "Bearer a token that is long enough"})
        engine.hold.set()
        return reply

    reply = converse(talk, limits=Limits(deadline_s=0.01))
    assert reply.status_code == 503
    assert reply.headers["retry-after"]
    assert engine.generation == 4


def test_the_engine_is_closed_with_the_service(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> None:
        pass

    converse(talk)
    assert engine.closed


def test_the_openapi_document_names_limits_errors_and_the_token(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> dict[str, Any]:
        found: dict[str, Any] = (await client.get("/openapi.json")).json()
        return found

    document = converse(talk, limits=Limits(k=7))
    assert document["components"]["schemas"]["AskRequest"]["properties"]["k"]["maximum"] == 7
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document["paths"]["/v1/refresh"]["post"]["security"] == [{"token": []}]
    assert {"200", "413", "422", "429", "503"} <= document["paths"]["/v1/ask"]["post"]["responses"].keys()
