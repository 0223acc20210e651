"""The daemon as a process, asked over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import socket

from prometheus_client.parser import text_string_to_metric_families

from tests.agent_process import Agent

INFER = "/v2/models/digits/infer"


class Served:
    """An agent with HTTP on a free port."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        agent.wait_log("http on 127.0.0.1:")
        found = re.search(r"http on 127\.0\.0\.1:(\d+)", agent.log())
        assert found is not None
        self.port = int(found[1])

    def ask(self, method: str, path: str, body: bytes | None = None, timeout: float = 20, **fields: str):
        """Status, fields in lower case, and the body: parsed, if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in fields.items()})
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        headers = {k.lower(): v for k, v in response.getheaders()}
        is_json = headers.get("content-type") == "application/json" and data
        return response.status, headers, json.loads(data) if is_json else data

    def raw(self, data: bytes, timeout: float = 20) -> bytes:
        """All that comes back until the agent closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as sock:
            return exchange(sock, data)

    def metrics(self) -> dict[str, float]:
        """By name and labels, as the page has them."""
        _, _, page = self.ask("GET", "/metrics")
        families = text_string_to_metric_families(page.decode())
        return {s.name + "".join(f" {v}" for v in s.labels.values()): s.value for f in families for s in f.samples}


def exchange(sock: socket.socket, data: bytes) -> bytes:
    received = b""
    try:
        if data:
            sock.sendall(data)
        while more := sock.recv(65536):
            received += more
    except ConnectionError:
        pass  # it closed before it had all
    return received


class Planted(Agent):
    module = "tests.planted"


def post(body: bytes, *fields: str, path: str = INFER) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
