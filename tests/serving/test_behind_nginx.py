"""The service behind the proxy of `deploy/nginx.conf`."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from pretune.serving.options import ServeOptions
from tests.serving.in_process import InProcess
from tests.serving.live_server import LiveServer, wait_until

SITE = Path(__file__).parent.parent.parent / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def reads(port: int, path: str, body: bytes) -> list[bytes]:
    """What comes back of a request through the proxy, each time that something does."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    head = f"POST {path} HTTP/1.1\r\nHost: models.example.org:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    parts = []
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    with context.wrap_socket(plain, server_hostname="models.example.org") as connection:
        connection.sendall(head.encode())
        with suppress(OSError):  # what is too large is answered before it is read
            connection.sendall(body)
        while part := connection.recv(1 << 16):
            parts.append(part)
    return parts


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_passes_streams_and_refuses_large_bodies(
    tmp_path: Path, models: InProcess, limits: ServeOptions
) -> None:
    live = LiveServer(models, limits)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # The file as it is, but for its ports and where the certificate lies.
    site = SITE.read_text(encoding="utf-8").replace("/etc/ssl/", f"{tmp_path}/")
    site = site.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    site = site.replace("127.0.0.1:8000", f"127.0.0.1:{live.port}")
    places = "".join(
        f"{name}_temp_path {tmp_path}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"daemon off; master_process off; pid {tmp_path}/pid; events {{}}\n"
    whole += f"error_log {tmp_path}/errors;\n"
    (tmp_path / "nginx.conf").write_text(
        f"{whole}http {{ access_log off; {places}\n{site}\n}}", encoding="utf-8"
    )
    certificate = ["-keyout", tmp_path / "models.key", "-out", tmp_path / "models.pem"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=x",
            *certificate,
        ],
        check=True,
        capture_output=True,
    )
    proxy = subprocess.Popen([str(NGINX), "-p", tmp_path, "-c", tmp_path / "nginx.conf"])
    try:
        wait_until((tmp_path / "pid").is_file)
        asked = {"model": "lm", "prompt": "the", "max_tokens": 30, "temperature": 1, "stream": True}
        parts = reads(port, "/v1/completions", json.dumps(asked).encode())
        # Not all at once, and whole.
        assert len([part for part in parts if b"data: " in part]) > 3
        assert b"[DONE]" in b"".join(parts)
        # As much as the server reads, and not a byte more.
        body = b'{"model": "labels", "inputs": ["good"]}'
        full = body + b" " * (limits.max_body - len(body))
        assert b"".join(reads(port, "/v1/predict", full)).startswith(b"HTTP/1.1 200 ")
        assert b"".join(reads(port, "/v1/predict", full + b" ")).startswith(b"HTTP/1.1 413 ")
    finally:
        proxy.terminate()
        proxy.wait()
        live.close()
