"""The review page's server: pairs, pictures and decisions, on the loopback address only.

Every address begins with a secret of this run, so that no other page and no other user can guess one; the Host header
has to name this machine (against DNS rebinding), and a POST has to come from the page itself. Pictures are asked for by
a pair's number or an image's id: no path of a file is in any address.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from terrasieve.curate.decisions import DECISIONS
from terrasieve.errors import UserError
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.report.pair_pictures import PairPictures, pair_pictures, thumbnail
from terrasieve.report.render import render, source
from terrasieve.report.review_details import details, files
from terrasieve.report.review_pairs import CODES, SORTS, Filter, ReviewPairs

ADDRESS = "127.0.0.1"
SCRIPTS = ("review_sources.js", "review_view.js", "review.js")  # one script, in this order
STYLES = ("style.css", "review.css")
MOST_BYTES = 4096  # of a request's body
_HOSTS = ("127.0.0.1", "localhost")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_JSON, _JPEG = "application/json; charset=utf-8", "image/jpeg"
Answer = tuple[str, bytes]


class Refused(Exception):
    """A request that is not answered: status and why."""


class ReviewServer(ThreadingHTTPServer):
    """Serves one review until it is shut down; ``url`` is where.

    Args:
        review: what is reviewed.
        name: of it, for the page's title.
        port: 0 = a free one.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, review: ReviewPairs, name: str, port: int = 0) -> None:
        self.review = review
        self.secret = secrets.token_urlsafe(18)
        self.lock = threading.Lock()
        self.seen: Callable[[int], tuple[dict[str, Any], dict[str, bytes]]] = lru_cache(maxsize=24)(self._see)
        self.fixed: dict[str, Answer] = {
            "": ("text/html; charset=utf-8", page(review, name).encode()),
            "review.js": ("text/javascript; charset=utf-8", source(*SCRIPTS).encode()),
            "review.css": ("text/css; charset=utf-8", source(*STYLES).encode()),
        }
        try:
            super().__init__((ADDRESS, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"Cannot serve at port {port} of {ADDRESS}: {error}. Choose another --port, or none."
            ) from error

    @property
    def url(self) -> str:
        """Address of the page, its secret included."""
        return f"http://{ADDRESS}:{self.server_port}/{self.secret}/"

    def pair(self, number: int) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return a pair's details and pictures; one is read at a time, since the page asks for three at once."""
        with self.lock:
            return self.seen(number)

    def _see(self, number: int) -> tuple[dict[str, Any], dict[str, bytes]]:
        shown = look(self.review, number)
        return details(self.review, number, shown), files(shown)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of tabs that are closed while they load."""


def look(review: ReviewPairs, number: int, longest_px: int = 1024) -> PairPictures:
    """Read a pair's pictures."""
    pair = review.pair(number)
    rows = review.row(pair["row_a"]), review.row(pair["row_b"])
    return pair_pictures(*rows, pair["orientation"], pair["dx_px"], pair["dy_px"], longest_px=longest_px)


def page(review: ReviewPairs, name: str, **static: Any) -> str:
    """Return the page's HTML; ``static`` is what a page without a server holds beside it."""
    choices = {
        "verdict": ["review", *(v for v in review.values("verdict") if v != "review"), "all"],
        "kind": ["all", *review.values("kind")],
        "source": ["all", *review.values("source_a", "source_b")],
        "sort": list(SORTS),
    }
    return render("review.html.j2", name=name, choices=choices, decisions=str(review.path), static=static or None)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "terrasieve", ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a POST: a decision."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet."""

    def _answer(self, work: Callable[[str, dict[str, str]], Answer]) -> None:
        try:
            status, (kind, content) = HTTPStatus.OK, work(*self._checked())
        except Refused as refusal:
            status, kind, content = refusal.args[0], _JSON, _json({"error": refusal.args[1]})[1]
            self.close_connection = True  # a body may be left unread
        except UserError as error:
            status, kind, content = HTTPStatus.INTERNAL_SERVER_ERROR, _JSON, _json({"error": str(error)})[1]
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _checked(self) -> tuple[str, dict[str, str]]:
        """Return the address behind the secret and its query, or refuse."""
        host = self.headers.get("Host", "")
        if not re.fullmatch(rf"({'|'.join(map(re.escape, _HOSTS))})(:\d+)?", host):
            raise Refused(HTTPStatus.FORBIDDEN, "this server answers only to 127.0.0.1 and localhost")
        parts = urlsplit(self.path)
        secret, _, rest = parts.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(secret.encode("utf-8", "replace"), self.server.secret.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "open the address that `terrasieve review` printed")
        return rest, dict(parse_qsl(parts.query))

    def _get(self, path: str, query: dict[str, str]) -> Answer:
        if path in self.server.fixed:
            return self.server.fixed[path]
        if path == "pairs":
            return self._pairs(query)
        if path == "changes":
            changes, version, again = self.server.review.changes(_integer(query.get("since", "")))
            return _json({"changes": changes, "version": version, "again": again})
        if found := re.fullmatch(r"pair/(\d{1,9})(?:/(left|right|difference)\.jpg)?", path):
            said, pictures = self.server.pair(self._number(int(found[1])))
            if found[2] is None:
                self.server.review.refresh()
                return _json(said | {"decision": CODES[self.server.review.decided[int(found[1])]]})
            if found[2] in pictures:
                return _JPEG, pictures[found[2]]
        found = re.fullmatch(r"image/([0-9a-f]{16})\.jpg", path)
        if found and (row := self.server.review.find(found[1])) is not None:
            return _JPEG, self._thumbnail(row)
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _thumbnail(self, row: dict[str, Any]) -> bytes:
        try:
            return thumbnail(row)
        except UnreadableImage as error:
            raise Refused(HTTPStatus.NOT_FOUND, error.reason) from error

    def _pairs(self, query: dict[str, str]) -> Answer:
        review = self.server.review
        group = _integer(query["group"]) if query.get("group") else None
        plain = {name: query[name] for name in ("verdict", "kind", "source", "sort") if name in query}
        if plain.get("sort", "file") not in SORTS:
            raise Refused(HTTPStatus.BAD_REQUEST, f"sort is one of {', '.join(SORTS)}")
        version = review.refresh()
        order, total = review.order(Filter(**plain, undecided=query.get("undecided") == "1", group=group))
        said = {int(n): CODES[review.decided[n]] for n in order if review.decided[n]}
        return _json({"order": order.tolist(), "decisions": said, "total": total, "version": version})

    def _post(self, path: str, _query: dict[str, str]) -> Answer:
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers['Host']}":
            raise Refused(HTTPStatus.FORBIDDEN, "decisions are taken from the review page alone")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a decision is application/json")
        length = _integer(self.headers.get("Content-Length", ""))
        if not 0 < length <= MOST_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a decision has 1 to {MOST_BYTES} bytes")
        body = self.rfile.read(length)
        if path != "decide":
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        try:
            said = json.loads(body)
            number, decision, tab = said["pair"], said["decision"], said["tab"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "a decision has pair, decision and tab") from error
        if decision not in DECISIONS or not isinstance(tab, str) or not re.fullmatch(r"\w{1,32}", tab):
            raise Refused(HTTPStatus.BAD_REQUEST, f"no decision: {decision!r}, tab {tab!r}")
        if type(number) is not int:
            raise Refused(HTTPStatus.BAD_REQUEST, f"no number of a pair: {number!r}")
        return _json({"version": self.server.review.decide(self._number(number), decision, tab)})

    def _number(self, number: int) -> int:
        if not 0 <= number < len(self.server.review.pairs):
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no pair {number}")
        return number


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise Refused(HTTPStatus.BAD_REQUEST, f"{text!r} is no number")
    return max(int(text), 0)


def _json(value: Any) -> Answer:
    return _JSON, json.dumps(value, allow_nan=False).encode()
