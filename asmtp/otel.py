"""OpenTelemetry: spans and metrics of connections and deliveries, from their events (extra "otel").

    import asmtp.otel

    mailer = asmtp.AsyncMailer(url, on_event=asmtp.otel.Telemetry())

Spans are of kind CLIENT: ``smtp connect``, ``smtp tls``, ``smtp login`` and ``smtp send``, with ``server.address`` and
``server.port``.  The span of a login or message that failed has the status ERROR.  A span is a child of the one that is
current when the event happens: in the task that awaits `sendmail`.  A mailer's pool works for many callers, so the
spans of its messages are nobody's children.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import metrics, trace

from asmtp.client.events import Event
from asmtp.errors import one_line

__all__ = ["Telemetry"]

NANOSECONDS = 1_000_000_000


class Telemetry:
    """An `on_event` that makes spans and metrics.

    Metrics: ``smtp.client.connections`` (open ones), ``smtp.client.connect.duration`` and ``smtp.client.send.duration``
    (seconds, the latter by ``smtp.state``), ``smtp.client.recipients`` (by ``smtp.accepted``).

    Args:
        tracer_provider, meter_provider: by default the global ones.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer("asmtp", tracer_provider=tracer_provider)
        meter = metrics.get_meter("asmtp", meter_provider=meter_provider)
        self._connections = meter.create_up_down_counter(
            "smtp.client.connections", "{connection}", "Connections that are open"
        )
        self._connect = meter.create_histogram(
            "smtp.client.connect.duration", "s", "Time until the server's greeting was in"
        )
        self._send = meter.create_histogram("smtp.client.send.duration", "s", "Time that a message took")
        self._recipients = meter.create_counter("smtp.client.recipients", "{recipient}", "Recipients, accepted or not")
        self._open: set[int] = set()

    def __call__(self, event: Event) -> None:
        """Record an event."""
        server = _server(event.server)
        if event.kind == "connect":
            self._open.add(event.connection)
            self._connections.add(1, server)
            self._connect.record(event.seconds, server)
            self._span("smtp connect", event, {**server, "smtp.code": event.fields["code"]})
        elif event.kind == "tls":
            told = {"tls.protocol.version": event.fields["version"], "tls.cipher": event.fields["cipher"]}
            self._span("smtp tls", event, {**server, **told, "tls.resumed": event.fields["resumed"]})
        elif event.kind == "login":
            code = event.fields["code"]
            told = {"smtp.mechanism": event.fields["mechanism"], "smtp.code": code}
            self._span("smtp login", event, {**server, **told}, None if code in (235, 503) else "login refused")
        elif event.kind == "delivery":
            self._delivered(event, server)
        elif event.kind == "close" and event.connection in self._open:
            self._open.discard(event.connection)
            self._connections.add(-1, server)

    def _delivered(self, event: Event, server: dict[str, Any]) -> None:
        state, error = event.fields["state"], event.fields["error"]
        self._send.record(event.seconds, {**server, "smtp.state": state})
        for accepted, count in ((True, event.fields["accepted"]), (False, event.fields["refused"])):
            if count:
                self._recipients.add(count, {**server, "smtp.accepted": accepted})
        told = {**server, "smtp.state": state}
        told |= {f"smtp.{name}": event.fields[name] for name in ("accepted", "refused")}
        told |= {f"smtp.{name}": value for name in ("message_id", "envid") if (value := event.fields.get(name))}
        if error is not None:
            told["error.type"] = type(error).__qualname__
        self._span("smtp send", event, told, None if error is None else one_line(error))

    def _span(self, name: str, event: Event, attributes: dict[str, Any], error: str | None = None) -> None:
        end = time.time_ns()
        begun = end - int(event.seconds * NANOSECONDS)
        span = self._tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes, start_time=begun)
        if error is not None:
            span.set_status(trace.StatusCode.ERROR, error)
        span.end(end)


def _server(name: str) -> dict[str, Any]:
    host, colon, port = name.rpartition(":")
    if name.startswith("/") or not colon:
        return {"server.address": name}
    return {"server.address": host, "server.port": int(port)}
