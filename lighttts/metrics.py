"""Prometheus metrics: every name in one place, and the HTTP server for /metrics and /healthz.

Units follow Prometheus: seconds, bytes, ratios 0..1. `service` is broker, encode, llm or decode.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from lighttts.errors import ConfigError

_STATM = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
"""Opened beforehand: it is read also while no descriptor is left."""
MOST_SCRAPES = 16
SCRAPE_S = 5.0
"""Seconds after which a connection to /metrics or /healthz that says nothing is closed."""
_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_RATIO = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

requests_total = Counter(
    "light_tts_requests_total", "Requests begun, by service and method (preset, zero_shot, ...)", ["service", "method"]
)
requests_failed = Counter(
    "light_tts_requests_failed_total", "Requests that ended in an error, by its code", ["service", "code"]
)
requests_parked = Counter(
    "light_tts_requests_parked_total", "Requests left when their client's connection broke, for it to go on with"
)
requests_resumed = Counter(
    "light_tts_requests_resumed_total", "Requests gone on with after a lost connection or broker"
)
request_duration = Histogram(
    "light_tts_request_duration_seconds", "Admission to end of a request", ["service"], buckets=_LATENCY
)
batch_size = Histogram("light_tts_batch_size", "Requests in one engine step", ["service"], buckets=_SIZES)
queue_length = Gauge("light_tts_queue_length", "Requests waiting", ["service"])
active_requests = Gauge("light_tts_active_requests", "Requests being worked on", ["service"])
gpu_utilization = Gauge("light_tts_gpu_utilization", "Busy share of a GPU, 0..1", ["gpu_id"])
memory_usage = Gauge("light_tts_memory_usage", "Memory in bytes (type: rss, cuda_allocated, cuda_reserved)", ["type"])
cache_hit_rate = Gauge("light_tts_cache_hit_rate", "Hits over look-ups since start, 0..1", ["cache_type"])
cache_lookups = Counter(
    "light_tts_cache_lookups_total",
    "Look-ups in a cache (voice: features at an encode worker, recording: at the broker) by result: hit or miss",
    ["cache_type", "result"],
)
first_audio = Histogram("light_tts_first_audio_seconds", "Admission to first frame to the client", buckets=_LATENCY)
real_time_factor = Histogram(
    "light_tts_real_time_factor", "Time a finished request took over the audio it made", buckets=_RATIO
)
chunk_interval = Histogram(
    "light_tts_chunk_interval_seconds", "Time between a stream's frames", ["service"], buckets=_LATENCY
)
underruns_total = Counter(
    "light_tts_underruns_total", "Frames that came later than real-time playback of the earlier ones lasts"
)
stage_seconds = Histogram(
    "light_tts_stage_seconds", "Dispatch to last result of a stage", ["service"], buckets=_LATENCY
)
frames_total = Counter("light_tts_frames_total", "Token, mel and audio frames relayed or made", ["service", "kind"])
frames_refused = Counter(
    "light_tts_frames_refused_total",
    "Messages refused (malformed, stale_epoch, stale_attempt, unknown)",
    ["service", "why"],
)
breaker_state = Gauge("light_tts_breaker_state", "Circuit breaker: 0 closed, 1 half open, 2 open", ["target"])
breaker_failures = Counter(
    "light_tts_breaker_failures_total",
    "Failures counted by a circuit breaker (redis, or workers of a stage)",
    ["target"],
)
store_backlog = Gauge("light_tts_store_backlog", "Writes that wait for Redis")
records_given_up = Counter(
    "light_tts_records_given_up_total",
    "Live requests that go on without a record (full: too much waits; lost: Redis has lost a part of it)",
    ["why"],
)
connections_refused = Counter(
    "light_tts_connections_refused_total",
    "Connections that no allowed key opened, or for which there was no room (socket: clients, ...)",
    ["socket"],
)
connections = Gauge("light_tts_connections", "tcp connections (socket: clients, workers, results)", ["socket"])
workers_connected = Gauge("light_tts_workers", "Workers registered with the broker", ["stage"])


class _Server(ThreadingHTTPServer):
    """Serves few at a time, for a connection costs a thread and a descriptor: whoever comes beyond is hung up."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(MOST_SCRAPES)
        super().__init__(address, handler)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        try:
            super().finish_request(request, client_address)
        finally:
            self._room.release()


class HealthServer:
    """Serves /metrics and /healthz on `port` (0: any free one, see `.port`) in a thread of its own.

    `health` returns (healthy, sentence); it is called on each request to /healthz: 200 or 503 with the sentence.
    """

    def __init__(
        self,
        port: int,
        health: Callable[[], tuple[bool, str]],
        *,
        host: str = "127.0.0.1",
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = SCRAPE_S

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._reply(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path == "/healthz":
                    healthy, sentence = health()
                    self._reply(200 if healthy else 503, "text/plain; charset=utf-8", f"{sentence}\n".encode())
                else:
                    self._reply(404, "text/plain; charset=utf-8", b"here are /metrics and /healthz\n")

            def _reply(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not logged."""

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {host}:{port}: {error.strerror}; set another metrics_port, or null for none"
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def resident_bytes() -> int:
    """Resident memory of this process in bytes, from /proc."""
    return int(os.pread(_STATM, 256, 0).split()[1]) * 4096
