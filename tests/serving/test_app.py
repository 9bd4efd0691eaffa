"""What every request and every answer has, whatever protocol it speaks."""

from __future__ import annotations

import gc
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from typer.testing import CliRunner

from pretune.cli.app import app as commands
from pretune.errors import RunError
from pretune.serving.api_keys import ApiKeys
from pretune.serving.middleware import Traffic
from pretune.serving.refusal import Refusal
from tests.serving.fake_service import FakeService
from tests.serving.live_server import LiveServer, Reply, some_options, wait_until

TEXTS = ["the good film", "bad 好 film?", "x"]


def test_predict_gives_what_the_command_prints(server: LiveServer, classifier: Path) -> None:
    asked = CliRunner().invoke(commands, ["predict", str(classifier), *TEXTS, "--json"])
    printed = [json.loads(line) for line in asked.stdout.splitlines()]
    reply = server.post({"model": "tiny", "inputs": TEXTS})
    assert reply.status == 200
    assert reply.json["answers"] == printed
    assert (reply.json["model"], reply.json["version"]) == ("tiny", 1)
    # Without a model, the first; a text alone; fewer answers.
    short = server.post({"inputs": TEXTS[0], "top_k": 1}).json["answers"]
    asked = CliRunner().invoke(
        commands, ["predict", str(classifier), TEXTS[0], "--json", "--top-k", "1"]
    )
    assert short == [json.loads(asked.stdout)]


def test_maps_are_for_a_few_texts(fake: FakeService) -> None:
    for count, status in ((32, 200), (33, 422)):
        with closing(LiveServer(fake, some_options())) as live:
            reply = live.post({"inputs": ["x"] * count, "attention": True}, "/v1/explain")
        assert reply.status == status
    assert "32 inputs at a time, not 33" in reply.message


def test_what_is_no_number_is_null(server: LiveServer) -> None:
    reply = server.post({"inputs": ["x"]}, "/v1/explain")
    assert reply.json["explanations"] == [{"tokens": ["[CLS]"], "attributions": [None]}]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/nothing", None, 404, "nothing at this path"),
        ("POST", "/v1/predict/", {"inputs": ["x"]}, 404, "nothing at this path"),
        ("GET", "/v1/predict", None, 405, "does not take that method"),
        ("POST", "/v1/predict", {"inputs": ["x"], "model": "who"}, 404, "No model is called so"),
        ("POST", "/v1/predict", {}, 422, "'inputs' is missing"),
        ("POST", "/v1/predict", {"inputs": []}, 422, "an empty list"),
        ("POST", "/v1/predict", {"inputs": [3]}, 422, "'inputs[0]' has to be a text"),
        ("POST", "/v1/predict", {"inputs": [["a", "b"]]}, 422, "2 texts"),
        ("POST", "/v1/predict", {"inputs": ["x"], "topk": 2}, 422, "no key 'topk'"),
        ("POST", "/v1/predict", {"inputs": ["x"], "top_k": "2"}, 422, "'top_k' has to be"),
        ("POST", "/v1/predict", {"inputs": ["x"], "top_k": True}, 422, "'top_k' has to be"),
        ("POST", "/v1/predict", {"inputs": ["x"], "top_k": 0}, 422, "at least 1"),
        ("POST", "/v1/predict", ["x"], 422, "has to be a JSON object, not a list"),
    ],
)
def test_mistakes_are_told(
    server: LiveServer, method: str, path: str, body: Any, status: int, said: str
) -> None:
    reply = server.request(method, path, body)
    assert reply.status == status
    assert said in reply.message
    assert reply.headers["content-type"] == "application/json"


def test_a_wrong_method_is_told_the_right_one(server: LiveServer) -> None:
    assert server.request("GET", "/v1/predict").headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "status", "limit"),
    [
        ({"inputs": ["x" * 100_001]}, 413, "max_body"),
        ({"inputs": [["x"] * 600]}, 413, "max_values"),
        ({"inputs": [[[[[[[[["x"]]]]]]]]]}, 400, "max_depth"),
        ({"inputs": ["x"] * 21}, 413, "max_inputs"),
        ({"inputs": ["x", "y" * 1001]}, 413, "max_chars"),
        ({"inputs": [{"text": "y" * 1001}]}, 413, "max_chars"),
        ({"inputs": ["x"], "top_k": 6}, 422, "max_top_k"),
    ],
)
def test_limits_have_names(server: LiveServer, body: Any, status: int, limit: str) -> None:
    reply = server.post(body)
    assert reply.status == status
    assert reply.json["error"]["limit"] == limit
    # Whoever runs the server finds the option by it.
    assert reply.message.endswith(f" --{limit.replace('_', '-')}.")


def test_a_body_without_a_length_is_cut_short(server: LiveServer) -> None:
    parts = b"%x\r\n%b\r\n" % (40_000, b"x" * 40_000)
    head = b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n"
    end = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n"
    received = server.raw(head + parts * 4 + end)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 100,000 bytes" in received
    # What follows on the connection is still understood.
    assert b"HTTP/1.1 200 " in received


def test_a_form_is_no_json(server: LiveServer) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain; charset=utf-8"):
        reply = server.post({"inputs": ["x"]}, headers={"Content-Type": kind})
        assert reply.status == 415
        assert "Content-Type: application/json" in reply.message


class TestHeaders:
    def test_of_security(self, server: LiveServer) -> None:
        for path in ("/healthz", "/nothing"):
            headers = server.request("GET", path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"].startswith("default-src 'none'; script-src")
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers
            assert "access-control-allow-origin" not in headers

    def test_a_request_has_an_id(self, server: LiveServer) -> None:
        first, second = (server.request("GET", "/healthz") for _ in range(2))
        assert re.fullmatch("[0-9a-f]{32}", first.headers["x-request-id"])
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        given = server.request("GET", "/x", headers={"X-Request-Id": "mine-1.b_2"})
        assert given.headers["x-request-id"] == "mine-1.b_2"
        # What could forge a line of a log is no id.
        for odd in ("a b", "x" * 65, "é"):
            headers = {"X-Request-Id": odd.encode("latin-1").decode("latin-1")}
            reply = server.request("GET", "/healthz", headers=headers)
            assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])


def test_our_mistakes_are_ours_and_tell_no_text(
    server: LiveServer, capfd: pytest.CaptureFixture[str]
) -> None:
    reply = server.post({"model": "broken", "inputs": ["my secret"]})
    assert reply.status == 500
    assert reply.headers["x-request-id"] in reply.message
    shown = capfd.readouterr().err
    assert "RuntimeError" in shown
    assert "fake_service.py" in shown
    assert reply.headers["x-request-id"] in shown
    assert "secret" not in shown + reply.body.decode()


def refusals() -> int:
    """How many there are in this process."""
    return sum(type(own) in (Refusal, HTTPException) for own in gc.get_objects())


def test_what_is_refused_is_dropped_at_once(server: LiveServer) -> None:
    """With all that was asked: a body must not wait for the garbage collector."""
    gc.collect()
    gc.disable()
    before = refusals()
    try:
        server.request("GET", "/nothing")
        server.post({"inputs": [3]})
        server.post(b"[" * 90_000)  # is parsed in another thread
        server.post({"model": "who", "inputs": ["x"]})
        wait_until(lambda: refusals() <= before)
    finally:
        gc.enable()


class TestWhoIsGone:
    def test_frees_the_place(self, server: LiveServer, fake: FakeService) -> None:
        begun, given_up = fake.begun, fake.given_up
        body = json.dumps({"model": "slow", "inputs": ["x"]}).encode()
        with server.connect() as connection:
            connection.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: %d\r\n\r\n"
                % len(body)
            )
            connection.sendall(body)
            wait_until(lambda: fake.begun == begun + 1)
        wait_until(lambda: fake.given_up == given_up + 1)
        wait_until(lambda: not server.app.state.traffic.tasks)
        wait_until(lambda: server.app.state.traffic.held == 0)  # it answers before it forgets
        assert 'status="499"' in server.request("GET", "/metrics").body.decode()


def test_out_of_time(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretune.serving.middleware._GRACE", 0)
    with closing(LiveServer(fake, some_options(timeout=0.05))) as server:
        reply = server.post({"model": "slow", "inputs": ["x"]})
    assert reply.status == 504
    assert reply.json["error"]["limit"] == "timeout"


def test_bodies_together_have_a_limit(fake: FakeService) -> None:
    fake.release.clear()
    with closing(LiveServer(fake, some_options(max_bodies=1000))) as server:
        body = {"model": "slow", "inputs": ["x" * 800]}
        replies: list[Reply] = []
        waiting = threading.Thread(target=lambda: replies.append(server.post(body)))
        begun = fake.begun
        waiting.start()
        wait_until(lambda: fake.begun > begun)
        refused = server.post({"inputs": ["x" * 300]})
        assert (refused.status, refused.json["error"]["limit"]) == (503, "max_bodies")
        assert refused.headers["retry-after"] == "1"
        fake.release.set()
        waiting.join()
        assert replies[0].status == 200
        assert server.post({"inputs": ["x" * 300]}).status == 200
        wait_until(lambda: server.app.state.traffic.held == 0)  # it answers before it forgets
    fake.release.clear()


class TestKeys:
    KEYS = "# ours\n\n first-key \nsecond-key\n"

    @pytest.fixture
    def keys(self, tmp_path: Path) -> Path:
        path = tmp_path / "keys.txt"
        path.write_text(self.KEYS)
        return path

    @pytest.fixture
    def guarded(self, fake: FakeService, keys: Path) -> Iterator[LiveServer]:
        with closing(LiveServer(fake, some_options(api_key_file=keys))) as live:
            yield live

    def test_open_the_door(self, guarded: LiveServer) -> None:
        for key in ("first-key", "second-key"):
            headers = {"Authorization": f"Bearer {key}"}
            assert guarded.post({"inputs": ["x"]}, headers=headers).status == 200
        for wrong in ("Bearer", "Bearer first", "first-key", "Basic first-key", "Bearer # ours"):
            refused = guarded.post({"inputs": ["x"]}, headers={"Authorization": wrong})
            assert refused.status == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        assert guarded.post({"inputs": ["x"]}).json["error"]["code"] == "no_key"

    def test_who_has_none_is_not_read(self, guarded: LiveServer) -> None:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 5000000\r\n"
        with guarded.connect() as connection:
            connection.sendall(head + b"Connection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")

    def test_what_is_open(self, guarded: LiveServer) -> None:
        assert guarded.request("GET", "/healthz").status == 200
        assert guarded.request("GET", "/readyz").status == 200
        assert guarded.request("GET", "/metrics").status == 401
        # To look is free, to ask is not: the Hugging Face protocol posts to `/`.
        assert guarded.request("GET", "/").status != 401
        assert guarded.post({"inputs": ["x"]}, "/").status == 401

    def test_are_read_again(
        self, guarded: LiveServer, keys: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pretune.serving.api_keys._LOOK_EVERY", 0)

        def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return guarded.post({"inputs": ["x"]}, headers=headers).status

        keys.write_text("third-key\n")
        assert (status("third-key"), status("first-key")) == (200, 401)
        assert guarded.said == [f"{keys}: read again, 1 keys"]
        # What cannot be used changes nothing.
        keys.write_text("# all gone\n")
        assert status("third-key") == 200
        keys.unlink()
        assert status("third-key") == 200
        assert "no key in it; the keys from before stay" in guarded.said[1]
        assert "cannot be read (No such file or directory)" in guarded.said[2]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "no key in it"),
            (b"\xef\xbb\xbf\r\n", "no key in it"),
            (b"a b\n", "line 1"),
            ("ключ".encode(), "not ASCII"),
        ],
    )
    def test_a_file_without(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = tmp_path / "keys.txt"
        path.write_bytes(content)
        with pytest.raises(RunError, match=said):
            ApiKeys(path, print)

    @pytest.mark.parametrize("kind", ["pipe", "folder", "device", "model"])
    def test_what_is_no_file_with_keys(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "keys.txt"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "model":
            path.write_bytes(b"a\n" * 600_000)
        else:
            path = Path("/dev/zero")
        with pytest.raises(RunError, match=f"{path}: .*no file with keys"):
            ApiKeys(path, print)

    def test_a_file_that_becomes_a_pipe_changes_nothing(self, tmp_path: Path) -> None:
        path, said = tmp_path / "keys.txt", list[str]()
        path.write_text("a-key\r\na-key\r\n")
        keys = ApiKeys(path, said.append)
        path.unlink()
        os.mkfifo(path)
        keys._looked -= 10
        assert keys.admits("Bearer a-key")
        assert said == [
            f"{path}: this is a pipe or a device, and no file with keys; the keys from before stay"
        ]


class TestPagesOfOthers:
    def asked(self, live: LiveServer, origin: str, host: str | None = None) -> Reply:
        headers = {"Origin": origin, "Host": host or f"127.0.0.1:{live.port}"}
        return live.post({"inputs": ["x"]}, headers=headers)

    def test_are_refused(self, server: LiveServer) -> None:
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "", "http://["):
            assert self.asked(server, origin).status == 403

    def test_our_own_is_answered(self, server: LiveServer) -> None:
        assert self.asked(server, f"http://127.0.0.1:{server.port}").status == 200
        for host in (f"localhost:{server.port}", "[::1]:80", "localhost"):
            assert self.asked(server, f"http://{host}", host).status == 200

    def test_a_name_of_others_that_leads_here_is_not_ours(self, server: LiveServer) -> None:
        assert self.asked(server, "http://evil.example", "evil.example").status == 403

    @pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/", "/models/tiny", "/readyz"])
    def test_nothing_is_read_at_a_name_of_others(self, server: LiveServer, path: str) -> None:
        """A browser sends no `Origin` with what a page reads from its own name."""
        for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example"):
            reply = server.request("GET", path, headers={"Host": host})
            assert reply.status == 403
            assert b"--cors" in reply.body
        for host in (f"LOCALHOST:{server.port}", "127.0.0.1", "[::1]:80", "192.0.2.1:80", ""):
            assert server.request("GET", path, headers={"Host": host}).status == 200

    def test_a_name_of_others_is_ours_where_that_is_allowed(
        self, fake: FakeService, tmp_path: Path
    ) -> None:
        keys = tmp_path / "keys.txt"
        keys.write_text("one-key\n")
        read = {"Host": "models.example:8443", "Authorization": "Bearer one-key"}
        for more in (
            {"cors": ("https://models.example:8443",)},
            {"cors": ("https://models.example",)},
            {"cors": ("*",)},
            {"api_key_file": keys},
            {"insecure": True},
        ):
            with closing(LiveServer(fake, some_options(**more))) as live:
                assert live.request("GET", "/v1/models", headers=read).status == 200

    def test_are_answered_where_that_is_allowed(self, fake: FakeService) -> None:
        options = some_options(cors=("https://friend.example",))
        with closing(LiveServer(fake, options)) as live:
            reply = self.asked(live, "https://friend.example")
            assert reply.status == 200
            assert reply.headers["access-control-allow-origin"] == "https://friend.example"
            # What went wrong may be read as well.
            bad = live.post({}, headers={"Origin": "https://friend.example"})
            assert bad.status == 422
            assert bad.headers["access-control-allow-origin"] == "https://friend.example"
            asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
            before = live.request("OPTIONS", "/v1/predict", headers=asked)
            assert before.status == 200
            assert self.asked(live, "https://evil.example").status == 403


def test_the_access_log_has_no_text(fake: FakeService, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(LiveServer(fake, some_options(access_log=True))) as live:
        reply = live.post({"inputs": ["my secret"]}, "/v1/predict?secret=1")
        live.post({"inputs": ["x"]}, "/secret")
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first.pop("seconds") > 0
    assert first == {
        "id": reply.headers["x-request-id"],
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/predict",
        "model": "tiny",
        "status": 200,
        "kind": "",
        "bytes_in": len('{"inputs": ["my secret"]}'),
        "bytes_out": len(reply.body),
    }
    assert (second["path"], second["status"], second["kind"]) == ("unknown", 404, "not_found")


def test_metrics(fake: FakeService) -> None:
    with closing(LiveServer(fake, some_options())) as live:
        for body in ({"inputs": ["x"]}, {"inputs": ["y"]}, {}):
            live.post(body)
        text = live.request("GET", "/metrics").body.decode()
    asked = 'pretune_requests_total{model="tiny",path="/v1/predict",status="200"} 2.0'
    assert asked in text
    assert 'pretune_errors_total{kind="missing"} 1.0' in text
    assert 'pretune_request_seconds_count{path="/v1/predict"} 3.0' in text
    assert "process_open_fds" in text


class TestDraining:
    @staticmethod
    def under_way(live: LiveServer) -> tuple[Traffic, threading.Thread, list[Reply]]:
        """A request that is not answered before the service lets it."""
        traffic: Traffic = live.app.state.traffic
        replies: list[Reply] = []
        body = {"model": "slow", "inputs": ["x"]}
        running = threading.Thread(target=lambda: replies.append(live.post(body)))
        running.start()
        wait_until(lambda: len(traffic.tasks) == 1)
        return traffic, running, replies

    def test_takes_nothing_more_and_finishes_what_runs(self, fake: FakeService) -> None:
        fake.release.clear()
        with closing(LiveServer(fake, some_options())) as live:
            traffic, running, replies = self.under_way(live)
            assert live.request("GET", "/readyz").status == 200
            traffic.draining = True
            assert live.request("GET", "/readyz").status == 503
            assert live.request("GET", "/healthz").status == 200
            refused = live.post({"inputs": ["x"]})
            assert (refused.status, refused.headers["connection"]) == (503, "close")
            assert refused.headers["retry-after"] == "5"
            fake.release.set()
            running.join()
            assert replies[0].status == 200
        fake.release.clear()

    def test_gives_up_what_takes_too_long(self, fake: FakeService) -> None:
        fake.release.clear()
        with closing(LiveServer(fake, some_options())) as live:
            traffic, running, replies = self.under_way(live)
            (task,) = traffic.tasks
            task.get_loop().call_soon_threadsafe(traffic.give_up)
            running.join()
            assert replies[0].status == 503
            assert "ended before this was done" in replies[0].message
            time.sleep(0)
            assert not traffic.tasks
