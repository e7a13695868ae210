"""The monitor's page: the ranking as it is now, a trend of every machine, the sounds, and metrics.

    /                the page (page.html, page.css, page.js; nothing from elsewhere)
    /ranking.json    what it shows
    /sound/<id>      a recording that it shows, also in parts (Range)
    /metrics         for Prometheus

Only GET and HEAD, one request a connection, at most `CONNECTIONS` at a time, each within `PATIENCE`
seconds and `HEAD_BYTES`. On a loopback address only requests to such a name are answered, so that
no page of another site can come in by a name of its own (DNS rebinding). Elsewhere every request
needs the token: in the address (`/?token=`, which becomes a cookie), in the cookie, or as
`Authorization: Bearer`.

No path comes from a request: a sound is named by its id, and must be the regular file it was, in
the watched folder, on a way without links.
"""

import hmac
import io
import ipaddress
import re
import secrets
import socket
import sys
import threading
import time
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from socketserver import TCPServer
from urllib.parse import parse_qs, urlsplit

from dns_jax.operation.board import Board
from dns_jax.operation.sounds import find_range, open_sound

CONNECTIONS = 16
PATIENCE = 10.0  # s: for a request to be there, and for a part of an answer to be taken
HEAD_BYTES = 8192
_BLOCK = 65536
_PARTS = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_ALWAYS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; media-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
}


class PageServer(ThreadingHTTPServer):
    """Serves a board until it is closed, in threads of its own.

    Args:
      board: what is shown.
      folder: the watched one, outside which no file is opened.
      bind: an address or name of this host.
      port: 0: any that is free.

    Attributes:
      token: that every request needs; "" on a loopback address.
      url: of the page, the token in it.

    Raises:
      OSError: the address cannot be had.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTIONS

    def __init__(self, board: Board, folder: str, bind: str = "127.0.0.1", port: int = 0):
        self.board, self.folder = board, folder
        self.parts = {
            path: (files("dns_jax.operation").joinpath(name).read_bytes(), kind)
            for path, (name, kind) in _PARTS.items()
        }
        self.token = "" if is_loopback(bind) else secrets.token_urlsafe(24)
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        super().__init__((bind, port), _Handler)
        host = f"[{bind}]" if ":" in bind else bind
        query = f"?token={self.token}" if self.token else ""
        self.url = f"http://{host}:{self.server_address[1]}/{query}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def server_bind(self):
        """Bind without asking the name service for our name, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address):
        """Start a thread, unless there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request, client_address):
        """Answer one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request, client_address):
        """Tell what went wrong with a request; that its client went away is nothing."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.board.tell(f"the page could not answer ({type(error).__name__}: {error})")

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version, server_version, sys_version = "HTTP/1.1", "dns_jax", ""
    timeout = PATIENCE

    def handle(self):
        """Read the head within its limits, then answer."""
        head, end = b"", time.monotonic() + PATIENCE
        while not re.search(rb"\r?\n\r?\n", head):
            self.connection.settimeout(max(0.01, end - time.monotonic()))
            part = self.connection.recv(HEAD_BYTES)
            head += part
            if not part or time.monotonic() > end:
                return
            if len(head) > HEAD_BYTES:
                self.request_version, self.requestline = self.protocol_version, ""
                self.command = None
                self.send_error(431)
                return
        self.connection.settimeout(PATIENCE)
        self.rfile = io.BytesIO(head)
        self.handle_one_request()

    def do_GET(self):
        """Answer GET, and HEAD without what it is about."""
        try:
            address = urlsplit(self.path)
        except ValueError:
            self.send_error(400)
            return
        if not self._is_ours():
            self.send_error(421)
        elif self.server.token and not self._has_token(address.query):
            self.send_error(401)
        elif self.server.token and "token=" in address.query:
            cookie = f"{self._cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
            self._begin(303, 0, "text/plain", {"Location": "/", "Set-Cookie": cookie})
        elif address.path in self.server.parts:
            self._send(*self.server.parts[address.path])
        elif address.path == "/ranking.json":
            self._send(self.server.board.to_json(), "application/json")
        elif address.path == "/metrics":
            kind = "text/plain; version=0.0.4; charset=utf-8"
            self._send(self.server.board.to_metrics(), kind)
        elif match := re.fullmatch(r"/sound/([0-9]{1,18})", address.path, re.ASCII):
            self._send_sound(self.server.board.find(int(match[1])))
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _is_ours(self):
        """Whether a request to a loopback address came by such a name."""
        if self.server.token:
            return True
        try:
            return is_loopback(urlsplit(f"//{self.headers.get('Host', '')}").hostname or "")
        except ValueError:
            return False

    @property
    def _cookie(self):
        return f"dns_jax_{self.server.server_port}"  # a host's ports share their cookies

    def _has_token(self, query):
        said = [*parse_qs(query).get("token", ())]
        kind, _, word = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            said.append(word.strip())
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie)
        except CookieError:
            cookie = None
        if cookie:
            said.append(cookie.value)
        ours = self.server.token.encode()
        return any(hmac.compare_digest(word.encode(errors="replace"), ours) for word in said)

    def _send(self, content, kind):
        self._begin(200, len(content), kind)
        if self.command == "GET":
            self.wfile.write(content)

    def _send_sound(self, row):
        try:
            file = open_sound(self.server.folder, row) if row else None
        except OSError:
            file = None
        if file is None:
            self.send_error(404)
            return
        with file:
            kind = "audio/flac" if row.path.lower().endswith(".flac") else "audio/wav"
            more = {"Accept-Ranges": "bytes"}
            try:
                part = find_range(self.headers.get("Range", ""), row.size)
            except ValueError:
                self.send_error(416, headers={"Content-Range": f"bytes */{row.size}"})
                return
            start, end = part or (0, row.size)
            if part:
                more["Content-Range"] = f"bytes {start}-{end - 1}/{row.size}"
            self._begin(206 if part else 200, end - start, kind, more)
            file.seek(start)
            left = end - start if self.command == "GET" else 0
            while left and (block := file.read(min(_BLOCK, left))):
                self.wfile.write(block)
                left -= len(block)

    def _begin(self, status, length, kind, more=()):
        self.send_response(status)
        for name, value in {**_ALWAYS, **dict(more), "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def send_error(self, code, message=None, explain=None, headers=()):
        """Say what is wrong in one line that repeats nothing of the request."""
        del message, explain
        more = dict(headers)
        if code == 501:  # a method that there is none for
            code, more = 405, {"Allow": "GET, HEAD"}
        if code == 401:
            more["WWW-Authenticate"] = "Bearer"
        text = f"{int(code)} {self.responses.get(code, ('',))[0]}\n".encode()
        self._begin(int(code), len(text), "text/plain; charset=utf-8", more)
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_):
        """Say nothing."""


def is_loopback(name: str) -> bool:
    """Whether an address or name is one that only this host reaches."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"
