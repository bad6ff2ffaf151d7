"""Offer the newest sample to Prometheus on the loopback interface (text format 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tool_aware.console import UserError
from tool_aware.gpu.readings import GpuReading
from tool_aware.monitor.sampling import Sample

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

LOOPBACK = "127.0.0.1"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Metric -> (help, field of GpuReading); units in the names, as Prometheus asks for.
_GAUGES = {
    "gpu_memory_total_bytes": ("Memory of the card.", "total_bytes"),
    "gpu_memory_used_bytes": ("Memory in use.", "used_bytes"),
    "gpu_utilization_percent": ("Share of time in which a kernel ran.", "utilization_percent"),
    "gpu_temperature_celsius": ("Temperature of the chip.", "temperature_c"),
    "gpu_power_watts": ("Power drawn.", "power_w"),
    "gpu_sm_clock_megahertz": ("Clock of the multiprocessors.", "sm_clock_mhz"),
}


def exposition(gpus: Sequence[GpuReading]) -> str:
    """Write readings in Prometheus' text format. What is not known is left out; `gpu_up` tells a lost GPU."""
    lines: list[str] = []
    for name, (text, field) in _GAUGES.items():
        values = [(gpu, getattr(gpu, field)) for gpu in gpus if not gpu.problem]
        known = [f"{name}{_labels(gpu)} {value:g}" for gpu, value in values if value is not None]
        lines += [*_head(name, text), *known] if known else []
    lines += _head("gpu_up", "1 if the driver answers for this GPU.")
    lines += [f"gpu_up{_labels(gpu)} {int(not gpu.problem)}" for gpu in gpus]
    return "\n".join(lines) + "\n"


def _head(name: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} gauge"


def _labels(gpu: GpuReading) -> str:
    name = gpu.name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{{gpu="{gpu.index}",name="{name}"}}'


class Exporter:
    """Serves /metrics from a thread of its own until closed."""

    def __init__(self, port: int) -> None:
        from http.server import ThreadingHTTPServer

        self._text = ""
        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), _handler(lambda: self._text))
        except OSError as error:
            raise UserError(
                f"cannot listen on {LOOPBACK}:{port}: {error.strerror}",
                where="--prometheus",
                fix="choose another port",
            ) from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True, name="prometheus").start()

    @property
    def port(self) -> int:
        """Return the port listened on; of use where 0 let the system choose."""
        return self._server.server_address[1]

    def take(self, sample: Sample) -> None:
        """Serve this sample from now on."""
        self._text = exposition(sample.gpus)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _handler(text: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in ("/", "/metrics"):
                self.send_error(404)
                return
            body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing: a scrape every few seconds is no news."""

    return Handler
