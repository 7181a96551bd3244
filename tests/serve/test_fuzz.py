"""Calls that follow the OpenAPI schema, or almost: the server refuses what it cannot do, and never fails."""

from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from nightly import EVERY_NIGHT
from schemathesis.generation import GenerationMode
from turns import user

EXAMPLES = 150 if EVERY_NIGHT else 2  # of each endpoint and mode
TIMEOUT_S = 120  # on a busy machine, an answer may take longer than the client's default of 10 s
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


def reaching(case, known):
    """Let a generated call reach what lies behind the first checks: a memory and a model that exist."""
    if known and "memory" in (case.path_parameters or {}):
        case.path_parameters["memory"] = "known"
    if known and isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = "tiny"
        if "max_tokens" in case.body:
            case.body["max_tokens"] = 2


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_no_call_makes_the_server_fail(served, mode):
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    calls = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            suppress_health_check=[*HealthCheck],
            phases=[Phase.generate],  # what fails is told as it is, because a call changes the server
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
        def call(case, known):
            nonlocal calls
            calls += 1
            reaching(case, known)
            response = case.call(base_url=served.url, timeout=TIMEOUT_S)
            assert response.status_code < 500, (case.as_curl_command(), response.text)

        with served.client() as client:
            client.post("/v1/memories/known/messages", json={"messages": [user("Anna likes teal.")]})
        with suppress(Unsatisfiable):  # nothing about it can be wrong
            call()
    assert calls > 5 * EXAMPLES  # many endpoints can be called so
    with served.client() as client:  # it still serves
        body = {"model": "tiny", "max_tokens": 4, "messages": [user("Hello")]}
        assert client.post("/v1/chat/completions", json=body).is_success


def test_a_failure_would_be_seen(served, monkeypatch):
    def fail(*given):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(served.memories.store, "names", fail)
    with pytest.raises(BaseException, match="the server failed at this request"):
        test_no_call_makes_the_server_fail(served, GenerationMode.POSITIVE)
