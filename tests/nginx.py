"""A real nginx that serves a repository over TLS on a free loopback port."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from agent.mqtt.embedded import free_port
from tests.broker import wait_listening

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
_CONFIG = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; {user}
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log combined;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  types {{ application/json json; }}
  default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {pki}/broker.pem; ssl_certificate_key {pki}/broker.key;
    {extra}
    root {repository};
  }}
}}
"""


class Nginx:
    """folder: its own; repository: what it serves. pki: of tests/pki.py. clients: only those with a certificate.
    extra: lines of its server block.
    """

    def __init__(self, folder: Path, repository: Path, pki: Path, clients: bool = False, extra: str = "") -> None:
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self._folder = folder
        folder.mkdir()
        if clients:
            extra += f" ssl_client_certificate {pki}/ca.pem; ssl_verify_client on;"
        user = "user root;" if os.geteuid() == 0 else ""
        config = folder / "nginx.conf"
        config.write_text(_CONFIG.format(folder=folder, port=self.port, pki=pki, extra=extra, repository=repository,
                                         user=user))  # fmt: skip
        self._process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL)
        wait_listening(self.port, self._process, (folder / "error.log").read_text)

    def log(self) -> list[str]:
        """Requests, in nginx's combined format."""
        return (self._folder / "access.log").read_text().splitlines()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)
