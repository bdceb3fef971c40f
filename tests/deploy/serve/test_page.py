"""What people, load balancers and Prometheus see of a service."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from deploy.serve.metrics import ServiceMetrics

Converse = Callable[..., Any]


def test_the_page_asks_nobody_but_the_service(converse: Converse) -> None:
    reply = converse(lambda client: client.get("/"))
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    assert "v1/ask" in reply.text
    assert re.findall(r"https?://|//[a-z]", reply.text) == []
    assert "innerHTML" not in reply.text  # facts are text, whatever they hold


def test_the_page_of_the_api_loads_only_what_the_service_itself_has(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> tuple[httpx.Response, list[httpx.Response]]:
        page = await client.get("/docs")
        loaded = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page.text)
        return page, [await client.get(f"/{''.join(address)}") for address in loaded]

    page, loaded = converse(talk)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert re.findall(r"https?://|//[a-z]", page.text) == []
    assert [reply.status_code for reply in loaded] == [200] * 4
    assert {reply.url.path for reply in loaded} == {
        "/openapi.json",
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
        "/docs/favicon.png",
    }


@pytest.mark.parametrize("address", ["/healthz", "/readyz"])
def test_load_balancers_may_ask_with_head(converse: Converse, address: str) -> None:
    assert converse(lambda client: client.head(address)).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text": ["who"] * 65}, "text: List should have at most 64 items after validation, not 65"),
        ({"text": []}, "text: List should have at least 1 item after validation, not 0"),
        ({"text": "   "}, "text: expected a text, found nothing but blanks"),
        ({"text": "who", "K": 2}, "body: 'K' is no key of it"),
        ({"text": 5}, "text: Input should be a valid string"),
        ([1], "expected a JSON object, sent with the header Content-Type: application/json, found something else"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(converse: Converse, body: Any, said: str) -> None:
    reply = converse(lambda client: client.post("/v1/ask", json=body))
    assert (reply.status_code, reply.json()["error"]["message"]) == (422, said)


def test_a_body_of_another_content_type_is_told_which_one(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/ask", content='{"text": "who"}', headers={"content-type": "text/plain"})

    assert "Content-Type: application/json" in converse(talk).json()["error"]["message"]


def test_where_several_replicas_answer_each_series_says_whose_it_is(engine: Any) -> None:
    of_each = []
    for _ in range(2):
        metrics = ServiceMetrics(among_others=True)
        metrics.request("/v1/ask", "POST", 200, 0.01)
        lines = [line for line in metrics.text(engine.status(), 0).decode().splitlines() if not line.startswith("#")]
        assert all('replica="' in line for line in lines)
        of_each.append(set(re.findall(r'replica="(\w+)"', "\n".join(lines))))
    (one,), (other,) = of_each
    assert one != other
