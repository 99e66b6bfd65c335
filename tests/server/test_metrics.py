"""``/metrics``, read by Prometheus's own parser for Python, and held against its conventions for names."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.server.serving import CHAT, ECHO_SERVER, HELLO, Served, serving

UNITS = ("seconds", "bytes", "total", "ratio", "info")
PLAIN = {"open", "limit", "depth", "slots", "used", "created", "fds"}
"""Last words of gauges that count things: those have no unit."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("echo"), *ECHO_SERVER) as found:
        with found.http() as client:
            question = {"model": "bedtime-tiny", "messages": HELLO, "seed": 1}
            for asking in ({"max_tokens": 5, "n": 3}, {"stream": True}, {"temperature": -1}):
                client.post(CHAT, json=question | asking)
            client.get("/nothing/of/mine")
        found.idle()
        yield found


def families(served: Served, accept: str) -> dict[str, Metric]:
    with served.http() as client:
        answer = client.get("/metrics", headers={"accept": accept})
    if answer.headers["content-type"].startswith("application/openmetrics-text"):
        found = list(parse_openmetrics(answer.text))  # type: ignore[no-untyped-call]
    else:
        assert answer.headers["content-type"].startswith("text/plain; version=")
        found = list(parse_text(answer.text))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def sample(family: Metric, suffix: str = "", **labels: str) -> float:
    [value] = [
        each.value for each in family.samples if each.name.endswith(suffix or each.name) and each.labels == labels
    ]
    return value


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0", "*/*"])
def test_what_was_done_is_counted(served: Served, accept: str) -> None:
    found = families(served, accept)
    assert sample(found["asyncgen_stories"], "_total", finish_reason="length") == 3
    assert sample(found["asyncgen_stories"], "_total", finish_reason="stop") == 1
    assert sample(found["asyncgen_http_requests"], "_total", path=CHAT, status="200") == 2
    assert sample(found["asyncgen_http_requests"], "_total", path=CHAT, status="400") == 1
    assert sample(found["asyncgen_http_requests"], "_total", path="other", status="404") == 1
    tokens = sample(found["asyncgen_tokens"], "_total")
    assert tokens == sample(found["asyncgen_generated_tokens"], "_total") > 15
    assert sample(found["asyncgen_prompt_tokens"], "_total") == 4 * len(HELLO[0]["content"].split())
    for name in ("asyncgen_queue_seconds", "asyncgen_generation_seconds", "asyncgen_token_seconds"):
        assert found[name].type == "histogram"
        assert sample(found[name], "_count") == sample(found[name], "_bucket", le="+Inf") == 4
    assert sample(found["asyncgen_first_token_seconds"], "_count") == 1
    assert sample(found["asyncgen_http_request_duration_seconds"], "_count", path=CHAT) == 3
    assert sample(found["asyncgen_slots"]) == 32, "as many as suit the engine"
    assert sample(found["asyncgen_slots_used"]) == 0
    assert sample(found["asyncgen_queue_depth"]) == 0
    assert sample(found["process_resident_memory_bytes"]) > 2**20


def test_names_follow_the_conventions(served: Served) -> None:
    """https://prometheus.io/docs/practices/naming: a prefix of the application, base units in plural, ``_total`` for
    what only grows, no unit or type of another kind in the name, and a help text.
    """
    found = families(served, "application/openmetrics-text; version=1.0.0")
    ours = {name: family for name, family in found.items() if name.startswith("asyncgen_")}
    assert len(ours) > 20
    assert set(found) - set(ours) <= {name for name in found if name.startswith("process_")}
    for name, family in ours.items():
        assert re.fullmatch("[a-z][a-z0-9_]*[a-z]", name)
        assert family.documentation.strip()
        assert family.type in ("counter", "gauge", "histogram")
        if family.type == "counter":
            assert not name.endswith("_total"), "the samples do, the family does not"
            assert {each.name for each in family.samples} <= {f"{name}_total", f"{name}_created"}
        else:
            assert name.rpartition("_")[2] in {*UNITS[:2], *PLAIN}
        assert not re.search("milli|micro|minute|_ms|kilo|mega|gauge|counter|histogram|_count$|_sum$", name)
    labels = {label for family in ours.values() for each in family.samples for label in each.labels}
    assert labels == {"path", "status", "finish_reason", "le"}
