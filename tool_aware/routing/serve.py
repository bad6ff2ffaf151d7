"""Serve a tuned model as an OpenAI-compatible endpoint that answers every query with a tool call.

  python -m tool_aware.routing.serve output/lora_adapters                              # on this machine, 4-bit
  python -m tool_aware.routing.serve output/lora_adapters --connect http://localhost:8000/v1 --served-model router

Reads   the adapter or merged model and the settings in its folder, routing_thresholds.json if evaluate.py wrote it,
        TOOL_AWARE_API_KEY (the key that clients must send) and OPENAI_API_KEY (that of the server behind --connect)
Serves  /v1/chat/completions, /v1/models, /v1/decisions/ID/outcome (with --log), /health, /metrics
Exit    0 stopped by a signal, requests under way answered, 2 the user can fix it, 1 bug
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import get_args

from tool_aware.command_line import (
    add_version_argument,
    path_argument,
    positive_float,
    positive_int,
    script_parser,
    tcp_port,
)
from tool_aware.config.environment import read_environment
from tool_aware.console import EXIT_DONE, Interrupted, UserError, require_packages, run, say
from tool_aware.routing.deciding import Instead
from tool_aware.routing.decision import Acting
from tool_aware.routing.feedback import DecisionLog
from tool_aware.routing.router import Router

LOOPBACK = "127.0.0.1"
_ACTING: tuple[str, ...] = get_args(Acting)
_INSTEAD: tuple[str, ...] = get_args(Instead)
_LONGEST_STOP_S = 5.0  # beyond the deadline of a decision


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = script_parser(__doc__, prog="python -m tool_aware.routing.serve")
    add_version_argument(parser)
    parser.add_argument("folder", type=path_argument, nargs="?", default=Path("output/lora_adapters"))
    parser.add_argument("--config", type=path_argument, help="config.yaml of the training, if the folder has none")
    parser.add_argument("--base", help="where the base model lies now, if it was moved")
    parser.add_argument("--connect", metavar="URL", help="vLLM or llama.cpp that serves the model")
    parser.add_argument("--served-model", metavar="NAME", help="its name there; needed with --connect")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on (%(default)s); others need a key")
    parser.add_argument("--port", type=tcp_port, default=8080, help="port to listen on (%(default)s); 0: any free one")
    parser.add_argument("--model-name", default="tool-router", help="`model` in requests (%(default)s)")
    parser.add_argument("--deadline-s", type=positive_float, default=30.0, help="for each decision (%(default)g)")
    parser.add_argument("--at-once", type=positive_int, default=64, help="requests; others get 429 (%(default)s)")
    parser.add_argument("--acting", choices=_ACTING, default="threshold", help="when the model is sure (%(default)s)")
    parser.add_argument("--any-tools", action="store_true", help="also take tools that the model was not trained with")
    parser.add_argument("--log", metavar="CONFIG", help="config.yaml of the query log that decisions are written to")
    parser.add_argument("--instead", choices=_INSTEAD, default="no_tool", help="what decides where the model cannot")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal."""
    options = parse_arguments(arguments)
    require_packages("fastapi", "uvicorn")
    if bool(options.connect) != bool(options.served_model):
        raise UserError("--connect and --served-model go together", fix="give both, or none to load the model here")
    key = read_environment().tool_aware_api_key
    if key is None and not _is_loopback(options.host):
        what = "whoever reaches this address could use the model: there is no key"
        raise UserError(what, where=f"--host {options.host}", fix="set TOOL_AWARE_API_KEY, which clients then send")
    with _listening(options.host, options.port) as listener, _log(options.log) as log, _router(options, log) as router:
        _serve(router, listener, options, key)
    return EXIT_DONE


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that holds the address; nobody is answered before the model is there."""
    where = f"--host {host} --port {port}"
    try:
        ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY only where the protocol is named
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen there: {error.strerror}", where=where, fix="choose another host or port"
        ) from error
    return listener


def _log(config: str | None) -> AbstractContextManager[DecisionLog | None]:
    return DecisionLog.open(config) if config else nullcontext()


def _router(options: argparse.Namespace, log: DecisionLog | None) -> Router:
    shared = {"config": options.config, "acting": options.acting, "instead": options.instead, "log": log}
    if options.connect:
        return Router.connect(options.connect, options.served_model, options.folder, at_once=options.at_once, **shared)
    return Router.load(options.folder, base=options.base, **shared)


def _serve(router: Router, listener: socket.socket, options: argparse.Namespace, key: str | None) -> None:
    import uvicorn

    from tool_aware.routing.chat_api import Serving, make_app

    serving = Serving(options.model_name, options.deadline_s, options.at_once, key, options.any_tools)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    listener.listen()  # who reads the address in the next line may ask at once
    say(f"serving {', '.join(router.tools.names)} as model {serving.model!r} at http://{shown}:{port}/v1")
    config = uvicorn.Config(
        make_app(router, serving),
        log_level="warning",
        access_log=False,
        use_colors=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=int(options.deadline_s + _LONGEST_STOP_S),
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except (KeyboardInterrupt, Interrupted):  # uvicorn has answered what was under way, and raises the signal again
        say("stopped")


if __name__ == "__main__":
    run(main)
