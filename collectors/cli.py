"""``flexnpu-collector``."""

from __future__ import annotations

import ipaddress
import signal
import time
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import click

from collectors.aggregate import Aggregator
from collectors.daemons import Daemons
from collectors.otlp import OtlpSink
from collectors.prometheus import PrometheusSink, serve
from collectors.sinks import Sink
from flexnpu.common import descriptors
from flexnpu.console.numbers import DAY_S, DURATION, Duration, Number
from flexnpu.console.output import out, say
from flexnpu.console.program import SETTINGS, Program
from flexnpu.control import paths
from probes.feed.follow import SLICE_S, FeedFollower
from probes.feed.socket import FeedClient


class _Address(click.ParamType[tuple[str, int]]):
    name = "HOST:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, colon, port = str(value).rpartition(":")
        host = host.strip("[]")
        if not colon or not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT, for example 127.0.0.1:9464", param, ctx)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            self.fail(f"{host!r} is not an IP address; 127.0.0.1 serves this machine only", param, ctx)
        return host, int(port)


def _endpoint(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise click.BadParameter(f"{value!r} is not a URL like http://127.0.0.1:4318")
        if parts.path.rstrip("/").endswith(("/v1/metrics", "/v1/traces")):
            raise click.BadParameter(f"{value!r} names one signal; give the base, without /v1/...")
    return value


@click.command("flexnpu-collector", cls=Program, context_settings=SETTINGS)
@click.option(
    "--feed",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The tracer's feed.  [default: probe.sock in the run directory]",
)
@click.option(
    "--ctl",
    "controls",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="A daemon's control socket; may be given several times.  [default: all in the run directory]",
)
@click.option(
    "--listen",
    type=_Address(),
    default="127.0.0.1:9464",
    show_default=True,
    help="Where to serve /metrics; port 0 takes a free one, which is printed.",
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    callback=_endpoint,
    help="Send the same over OTLP/HTTP, to URL/v1/metrics and URL/v1/traces.",
)
@click.option(
    "--otlp-interval",
    type=Duration(0.1, DAY_S),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds between OTLP exports.",
)
@click.option(
    "--spans/--no-spans", default=True, show_default=True, help="Over OTLP, also a span a step and request."
)
@click.option(
    "--ttft-slo",
    type=Duration(0, DAY_S, above=True),
    default=1.0,
    show_default=True,
    metavar="S",
    help="The time to first token that a good request keeps.",
)
@click.option(
    "--ttft-objective",
    type=Number(0, 1, above=True, below=True, unit="a share"),
    default=0.99,
    show_default=True,
    metavar="RATIO",
    help="The share of requests that shall be good.",
)
@click.option(
    "--settle",
    type=Duration(0, DAY_S),
    default=1.0,
    show_default=True,
    metavar="S",
    help="How long after its end a decode step is judged to have had a prefill beside it or not.",
)
@click.option(
    "--poll-interval",
    type=Duration(0.05, DAY_S),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds between questions to the daemons.",
)
@click.option("--duration", type=DURATION, metavar="S", help="End after S seconds.")
def main(
    feed: Path | None,
    controls: tuple[Path, ...],
    listen: tuple[str, int],
    otlp_endpoint: str | None,
    otlp_interval: float,
    spans: bool,
    ttft_slo: float,
    ttft_objective: float,
    settle: float,
    poll_interval: float,
    duration: float | None,
) -> None:
    """Export what the tracer and the daemons see as metrics.

    \b
    EXAMPLES
      flexnpu-collector
            metrics at http://127.0.0.1:9464/metrics
      flexnpu-collector --ttft-slo 0.5 --ttft-objective 0.999
            999 of 1000 requests shall have their first token in half a second
      flexnpu-collector --otlp-endpoint http://127.0.0.1:4318
            also to an OpenTelemetry collector, with spans

    Reads the feed of `flexnpu-probe attach --feed` and the control sockets of running daemons, without
    privilege beyond the right to connect to them, and serves Prometheus metrics over HTTP. A feed or a
    daemon that is not there yet, or goes away, is tried again every second; meanwhile what it measures is
    absent and flexnpu_feed_connected or flexnpu_daemon_up is 0. The metrics are listed in
    docs/reference/metrics.md.

    Requests, steps and the objective are counted by service: OTEL_SERVICE_NAME of the traced process, else
    its pod, container or systemd unit, else its port. A request that waits longer than --ttft-slo for its
    first token is bad from then on, before it ends.

    \b
    EXIT STATUS
      0 after SIGINT, SIGTERM or --duration; 1 when it cannot listen; 2 for wrong usage.
    """
    try:
        feed = feed or paths.probe_socket()
    except paths.NoRunDirError as error:
        raise click.ClickException(str(error)) from None
    stop = _Stop(duration)
    descriptors.allow_many()
    daemons = Daemons(
        (lambda: controls) if controls else paths.control_sockets, interval_s=poll_interval, on_trouble=say
    )
    sinks: list[Sink] = []
    aggregator = Aggregator(
        sinks,
        ttft_slo_s=ttft_slo,
        ttft_objective=ttft_objective,
        settle_ns=round(settle * 1e9),
        device_of=daemons.device_of,
    )
    snapshots = (aggregator.snapshot, daemons.snapshot)
    prometheus = PrometheusSink(snapshots)
    sinks.append(prometheus)
    otlp: OtlpSink | None = None
    with daemons:
        try:
            server, thread = serve(prometheus, *listen)
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror}; choose another with --listen"
            ) from None
        if not ipaddress.ip_address(listen[0]).is_loopback:
            say(f"{listen[0]} is reachable from other machines, and nobody is asked who they are")
        host = f"[{listen[0]}]" if ":" in listen[0] else listen[0]
        out(f"http://{host}:{server.server_port}/metrics", flush=True)
        if otlp_endpoint is not None:
            otlp = OtlpSink(otlp_endpoint, snapshots, interval_s=otlp_interval, spans=spans, on_trouble=say)
            sinks.append(otlp)
        try:
            _read(feed, aggregator, stop)
        finally:
            server.shutdown()
            server.server_close()
            thread.join(5)
            if otlp is not None:
                otlp.close()


class _Stop:
    """Set by SIGINT, SIGTERM and the end of the duration."""

    def __init__(self, duration: float | None) -> None:
        self._deadline = None if duration is None else time.monotonic() + duration
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked or (self._deadline is not None and time.monotonic() >= self._deadline)


def _read(path: Path, aggregator: Aggregator, stop: _Stop) -> None:
    """Give the feed's events to the aggregator until `stop`, over as many tracers as there will be."""

    def lost(why: str) -> None:
        if aggregator.connected:
            aggregator.disconnected()
        say(f"{why}; trying again")

    def connected() -> None:
        aggregator.connect(time.monotonic_ns())

    with FeedFollower(
        lambda: FeedClient(path, begins=True),
        on_trouble=lost,
        on_connected=connected,
        stopping=lambda: bool(stop),
    ) as feed:
        while not stop:
            event = feed.read(SLICE_S)
            if event is not None:
                aggregator.take(event)
            aggregator.advance(time.monotonic_ns())
    aggregator.finish()


if __name__ == "__main__":
    main()
