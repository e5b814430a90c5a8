"""OpenTelemetry's own SDK, with exporters in memory."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import asmtp
from asmtp.client.events import Event
from asmtp.otel import Telemetry
from tests.conftest import Certificates
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import Relay, relaying

context.get_current()  # the first time, some versions read files, which is not for an event loop


class Collected:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.telemetry = Telemetry(self.tracers, self.meters)

    @property
    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    @property
    def metrics(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        [resource] = data.resource_metrics
        return {metric.name: list(metric.data.data_points) for metric in resource.scope_metrics[0].metrics}


async def test_a_message_and_its_connection(certificates: Certificates) -> None:
    collected = Collected()
    async with embedded(Embedded(), tls=certificates.server) as server:
        smtp = asmtp.AsyncSMTP(
            "127.0.0.1", server.port, "me.example", username=USER, password=PASSWORD,
            ssl_context=certificates.trusting, on_event=collected.telemetry,
        )  # fmt: skip
        with collected.tracers.get_tracer("app").start_as_current_span("request"):
            async with smtp:
                await smtp.sendmail(SENDER, [WHO], b"hi\r\n")
    spans = {span.name: span for span in collected.spans}
    assert list(spans) == ["smtp connect", "smtp tls", "smtp login", "smtp send", "request"]
    for name, span in spans.items():
        if name == "request":
            continue
        assert span.kind is SpanKind.CLIENT
        assert span.attributes["server.address"] == "127.0.0.1"
        assert span.attributes["server.port"] == server.port
        assert span.start_time < span.end_time
        assert span.status.status_code is StatusCode.UNSET
        assert span.parent.span_id == spans["request"].context.span_id
    assert spans["smtp tls"].attributes["tls.resumed"] is False
    assert spans["smtp login"].attributes["smtp.mechanism"] == "CRAM-MD5"
    assert spans["smtp send"].attributes["smtp.state"] == "sent"
    found = collected.metrics
    assert [point.value for point in found["smtp.client.connections"]] == [0]
    assert [point.count for point in found["smtp.client.connect.duration"]] == [1]
    [send] = found["smtp.client.send.duration"]
    assert (send.count, send.attributes["smtp.state"]) == (1, "sent")
    [recipients] = found["smtp.client.recipients"]
    assert (recipients.value, recipients.attributes["smtp.accepted"]) == (1, True)
    assert PASSWORD not in "".join(span.to_json() for span in collected.spans)


async def test_what_fails() -> None:
    collected = Collected()
    answers = {"RCPT": "550 5.1.1 no", "AUTH": "535 5.7.8 no"}
    async with relaying(Relay(("AUTH PLAIN",), answer=lambda verb, line: answers.get(verb))) as relay:
        async with asmtp.AsyncMailer(f"smtp://127.0.0.1:{relay.port}", on_event=collected.telemetry) as mailer:
            with pytest.raises(asmtp.SMTPRecipientsRefused):
                await mailer.send(b"hi", SENDER, [WHO])
        smtp = asmtp.AsyncSMTP("127.0.0.1", relay.port, on_event=collected.telemetry)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPAuthenticationError):
            await smtp.login("me", "s3cret")
    failed = {span.name: span for span in collected.spans if span.status.status_code is StatusCode.ERROR}
    assert set(failed) == {"smtp send", "smtp login"}
    assert failed["smtp send"].attributes["error.type"] == "SMTPRecipientsRefused"
    assert failed["smtp send"].attributes["smtp.state"] == "refused"
    assert failed["smtp send"].attributes["smtp.refused"] == 1
    assert failed["smtp send"].status.description == f"{WHO}: 550 5.1.1 no"
    assert failed["smtp login"].attributes["smtp.code"] == 535
    [counted] = collected.metrics["smtp.client.recipients"]
    assert (counted.value, counted.attributes["smtp.accepted"]) == (1, False)
    assert [point.value for point in collected.metrics["smtp.client.connections"]] == [1]
    await smtp.close()
    assert [point.value for point in collected.metrics["smtp.client.connections"]] == [0]


def test_servers_and_events_of_all_kinds() -> None:
    collected = Collected()
    collected.telemetry(Event("close", 1, "mx:25", 0.0, {"reason": "never open"}))
    collected.telemetry(Event("write", 1, "mx:25", 0.0, {}))
    collected.telemetry(Event("connect", 1, "/run/lmtp", 0.5, {"code": 220}))
    fields = {"state": "sent", "accepted": 1, "refused": 2, "error": None, "message_id": "<1@x>", "envid": None}
    collected.telemetry(Event("delivery", 1, "::1:25", 0.5, fields))
    connect, send = collected.spans
    assert dict(connect.attributes) == {"server.address": "/run/lmtp", "smtp.code": 220}
    assert (send.attributes["server.address"], send.attributes["server.port"]) == ("::1", 25)
    assert send.attributes["smtp.message_id"] == "<1@x>"
    assert "smtp.envid" not in send.attributes
    assert 0.4e9 < connect.end_time - connect.start_time < 0.6e9
    counted = {point.attributes["smtp.accepted"]: point.value for point in collected.metrics["smtp.client.recipients"]}
    assert counted == {True: 1, False: 2}
    assert Telemetry() is not None  # with the global providers
