"""The review's server: what it answers, and to whom it does not."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from terrasieve.curate import decisions
from terrasieve.errors import UserError
from terrasieve.report.review_server import ReviewServer

from .review_of import review_of, serving, write_review


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_review(tmp_path_factory.mktemp("served") / "curated")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ReviewServer]:
    with serving(folder) as server:
        yield server


def ask(
    server: ReviewServer, path: str, method: str = "GET", body: Any = None, raw: bool = False, **headers: str
) -> Any:
    """Return status, headers and body; ``raw`` leaves out the secret."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    content = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
    connection.putrequest(method, path if raw else f"/{server.secret}/{path}", skip_host="Host" in headers)
    if content is not None:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))} | headers
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(content)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_pages_and_their_headers(server: ReviewServer) -> None:
    kinds = {"": "text/html", "review.js": "text/javascript", "review.css": "text/css", "pairs": "application/json"}
    kinds |= {"pair/0/left.jpg": "image/jpeg", f"image/{server.review.pair(0)['id_a']}.jpg": "image/jpeg"}
    for path, kind in {**kinds, "nothing": "application/json"}.items():
        status, headers, content = ask(server, path)
        assert status == (404 if path == "nothing" else 200) and headers["Content-Type"].startswith(kind)
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
        assert int(headers["Content-Length"]) == len(content) > 0


def test_a_pair(server: ReviewServer) -> None:
    said = json.loads(ask(server, "pair/0")[2])
    assert said["left"]["words"] == "a0.png, class<0>" and said["common"] and said["difference"]
    assert ["GSD", "", "0.5 m"] in said["fields"] and said["others"][0]["words"].startswith("a1")
    picture = Image.open(io.BytesIO(ask(server, "pair/0/left.jpg")[2]))
    assert picture.size == (48, 48) and np.asarray(picture).std() > 20
    said = json.loads(ask(server, "pair/6")[2])
    assert said["left"]["shared"] == [0.5, 0, 0.5, 1] and said["right"]["shared"] == [0, 0, 0.5, 1]
    said = json.loads(ask(server, "pair/7")[2])
    assert said["right"]["error"].startswith("missing") and not said["left"]["error"] and not said["difference"]
    assert ask(server, "pair/7/right.jpg")[0] == ask(server, "pair/7/difference.jpg")[0] == 404
    gone = server.review.pair(7)["id_b"]
    assert ask(server, f"image/{gone}.jpg")[0] == 404


def test_decisions_are_on_the_disk_when_the_answer_comes(server: ReviewServer, folder: Path) -> None:
    version = json.loads(ask(server, "pairs")[2])["version"]
    status, _, content = ask(server, "decide", "POST", {"pair": 4, "decision": "left", "tab": "a1"})
    pair = server.review.pair(4)
    assert status == 200 and decisions.read(folder / "decisions.jsonl")[pair["id_a"], pair["id_b"]] == "left"
    changes = json.loads(ask(server, f"changes?since={version}")[2])
    assert changes == {"changes": [[4, "left"]], "version": json.loads(content)["version"], "again": False}
    found = json.loads(ask(server, "pairs?undecided=1")[2])
    assert 4 not in found["order"] and found["total"] == 7
    ask(server, "decide", "POST", {"pair": 4, "decision": "undo", "tab": "a1"})
    assert decisions.read(folder / "decisions.jsonl") == {}


def test_many_tabs_at_once(tmp_path: Path) -> None:
    folder = write_review(tmp_path)
    with serving(folder) as server:

        def press(tab: str) -> None:
            for n in range(40):
                what = ("left", "both", "undo", "right")[n % 4]
                assert ask(server, "decide", "POST", {"pair": n % 6, "decision": what, "tab": tab})[0] == 200

        tabs = [threading.Thread(target=press, args=(f"tab{n}",)) for n in range(4)]
        for tab in tabs:
            tab.start()
        for tab in tabs:
            tab.join()
        lines = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
        assert len(lines) == 160 and {line["tab"] for line in lines} == {f"tab{n}" for n in range(4)}
        last = decisions.read(folder / "decisions.jsonl")
        now = json.loads(ask(server, "pairs?verdict=all")[2])["decisions"]
        pairs = {(p["id_a"], p["id_b"]): str(n) for n in range(8) if (p := server.review.pair(n))}
        assert now == {pairs[ids]: what for ids, what in last.items()}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "", "[::1]"]
)
def test_another_host_is_refused(server: ReviewServer, host: str) -> None:
    assert ask(server, "", Host=host)[0] == 403
    assert ask(server, "decide", "POST", {"pair": 0, "decision": "left", "tab": "a"}, Host=host)[0] == 403


def test_a_tunnel_to_this_machine_is_welcome(server: ReviewServer) -> None:
    assert ask(server, "", Host="localhost:9000")[0] == ask(server, "", Host="127.0.0.1")[0] == 200


@pytest.mark.parametrize("path", ["/", "/pairs", "/x/pairs", "//pairs", "/%00/", "*"])
def test_without_the_secret_nothing_is_served(server: ReviewServer, path: str) -> None:
    status, _, content = ask(server, path, raw=True)
    assert status == 403 and b"printed" in content


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1", "http://localhost:1", "https://127.0.0.1"]
)
def test_decisions_of_other_pages_are_refused(server: ReviewServer, folder: Path, origin: str) -> None:
    before = (folder / "decisions.jsonl").read_bytes() if (folder / "decisions.jsonl").exists() else b""
    said = {"pair": 0, "decision": "left", "tab": "a"}
    assert ask(server, "decide", "POST", said, Origin=origin)[0] == 403
    assert ask(server, "decide", "POST", said, Content_Type="text/plain")[0] == 415  # what a form can send unasked
    assert ((folder / "decisions.jsonl").read_bytes() if before else b"") == before


def test_the_page_itself_is_welcome(server: ReviewServer) -> None:
    said = {"pair": 0, "decision": "undo", "tab": "a"}
    assert ask(server, "decide", "POST", said, Origin=f"http://127.0.0.1:{server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "image/../../../etc/passwd", "image//etc/passwd.jpg", "review.py",
        "image/%2e%2e%2fmanifest.parquet", "style.css", "pair/0/..%2fleft.jpg", "pair/-1", "pair/8", "pair/99999999999",
        "pair/0/left.png", "image/ffffffffffffffff.jpg", "pairs.parquet", "decisions.jsonl", "pair/0x1",
    ],
)  # fmt: skip
def test_nothing_else_is_served(server: ReviewServer, path: str) -> None:
    status, headers, content = ask(server, path)
    assert status == 404 and headers["Content-Type"].startswith("application/json") and b"error" in content


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 413), (b"x" * 5000, 413), (b"{", 400), (b"[]", 400), (b"\xff", 400),
        ({"pair": 0, "decision": "left"}, 400),
        ({"pair": 0, "decision": "delete", "tab": "a"}, 400), ({"pair": 0, "decision": ["left"], "tab": "a"}, 400),
        ({"pair": 8, "decision": "left", "tab": "a"}, 404), ({"pair": -1, "decision": "left", "tab": "a"}, 404),
        ({"pair": True, "decision": "left", "tab": "a"}, 400), ({"pair": "0", "decision": "left", "tab": "a"}, 400),
        ({"pair": 0, "decision": "left", "tab": "a\n{}"}, 400), ({"pair": 0, "decision": "left", "tab": "a" * 99}, 400),
    ],
)  # fmt: skip
def test_bodies_that_are_no_decision(server: ReviewServer, folder: Path, body: Any, status: int) -> None:
    before = decisions.read(folder / "decisions.jsonl")
    assert ask(server, "decide", "POST", body)[0] == status
    assert decisions.read(folder / "decisions.jsonl") == before


def test_other_requests(server: ReviewServer) -> None:
    assert (
        ask(server, "pairs?group=x")[0]
        == ask(server, "changes?since=")[0]
        == ask(server, "changes?since=1e3")[0]
        == 400
    )
    assert ask(server, "other", "POST", {})[0] == 404
    assert ask(server, "pairs", "DELETE")[0] == ask(server, "pairs", "PUT")[0] == 501
    assert json.loads(ask(server, "pairs?verdict=nonsense")[2])["order"] == []
    assert ask(server, "pairs?sort=nonsense")[0] == 400


@pytest.mark.parametrize("line", [b"GET /\xc3\xa9/ HTTP/1.1", b"GET nonsense", b"\xff\xfe\x00", b"GET / HTTP/9.9"])
def test_bytes_that_are_no_request(server: ReviewServer, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as connection:
        connection.sendall(line + b"\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 200 " not in connection.recv(4096)
    assert ask(server, "")[0] == 200


def test_it_listens_on_this_machine_alone(server: ReviewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as outside:
        outside.settimeout(1)
        try:
            outside.connect((socket.gethostbyname(socket.gethostname()), server.server_port))
            reached = outside.getpeername()[0]
        except OSError:
            reached = ""
    assert reached in ("", "127.0.0.1")


def test_a_port_that_is_taken(server: ReviewServer, folder: Path) -> None:
    with pytest.raises(UserError, match="--port"):
        ReviewServer(review_of(folder), "x", server.server_port)
