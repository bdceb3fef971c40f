"""The OpenAPI document, fuzzed: whatever a client sends, no answer is a 5xx, undocumented, or tells of the inside."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from deploy.serve.app import make_app
from deploy.serve.settings import Access, Limits, ServeSettings, Source

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed; pip install 'hmn[dev]'")

TOKEN = "a token that is long enough"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}
INSIDE = ("Traceback", ".py", "site-packages", "password", "secret", "Error(", "pydantic", "run_dir")
EXAMPLES = 20


@pytest.fixture
def document(engine: Any) -> Any:
    """The service over the double, as schemathesis reads it: small limits, so that they are met."""
    service = ServeSettings(
        source=Source(run_dir="unused"),
        limits=Limits(k=9, items=3, text_chars=20, facts=3, objects=3, body_bytes=20_000),
        access=Access.from_token(TOKEN),
        poll_s=0,
    )
    return schemathesis.openapi.from_asgi("/openapi.json", make_app(engine, service))


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_nothing_that_is_sent_makes_the_service_fail_or_talk(document: Any, mode: str) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    asked: set[str] = set()
    expected = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
    expected += [checks.response_schema_conformance, checks.negative_data_rejection, checks.ignored_auth]
    for found in document.get_all_operations():
        operation = found.ok()
        if mode == "negative" and not operation.body:
            continue  # takes nothing, so nothing can be wrong with it
        asked.add(f"{operation.method.upper()} {operation.path}")

        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            response = case.call(headers=RIGHT)
            case.validate_response(response, expected, headers=RIGHT)  # asks again without the token, and with others
            if response.status_code >= 400:
                assert not [word for word in INSIDE if word in response.text]
                assert response.json()["error"].keys() == {"type", "message", "request_id"}

        check()
    assert {"POST /v1/ask", "POST /v1/search", "POST /v1/facts"} <= asked
    assert mode == "negative" or {"GET /v1/memory", "POST /v1/refresh", "GET /metrics", "GET /readyz"} <= asked
