"""Pages for the browser of this machine: a fixed table of answers over HTTP, on the loopback address alone.

Any page on the web can make a browser send requests to 127.0.0.1. So a request counts only if it names this machine as
its Host (a foreign name that resolves to 127.0.0.1 does not) and has no Origin but the page's own. A path is a key of
the table, never a file. A body is JSON of at most MOST bytes. Every answer forbids the browser to run or load anything
from elsewhere. A handler that fails answers {"error": one line}: 400 for what was asked, 500 for what broke.
"""

import json
import os
import re
import sys
import threading
import webbrowser
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import NamedTuple

from minisagan.errors import Fault, UsageError

MOST = 4096  # bytes of a request's body
DRAINED = 32 << 20  # bytes of a longer one that are read and dropped, so that its sender sees the answer
IDLE = 60  # seconds that a connection may say nothing
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Answer(NamedTuple):
    """What a handler returns: a media type and the bytes."""

    kind: str
    data: bytes


def as_json(value):
    return Answer("application/json", json.dumps(value, allow_nan=False).encode())


def asset(name):
    """The handler that answers with the file `name` beside this module."""
    path = Path(__file__).with_name(name)
    answer = Answer(f"{KINDS[path.suffix]}; charset=utf-8", path.read_bytes())
    return lambda: answer


def number(value, name, low, high, whole=False):
    """`value` of a request if it is a number in [low, high], and an integer if `whole`; else UsageError."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{name} must be {kind} from {low} to {high}, not {str(value)[:40]}")
    return value


class Server(ThreadingHTTPServer):
    """Answers "GET /path" by routes["GET /path"]() and "POST /path" by routes["POST /path"](the body's JSON object).

    It listens on `port`. With 0 it takes one that the text `name` decides, so that a page that is open finds a server
    that was started anew, or if that is taken any free one. Fault if the port is taken.
    """

    request_queue_size = 128  # connections that wait to be taken; with the usual 5 a burst waits for seconds
    daemon_threads = True  # what is being computed does not hold up the end
    allow_reuse_address = os.name == "posix"  # elsewhere it would share the port with another program

    def __init__(self, routes, name, port=0):
        self.routes = routes
        for wanted in [port] if port else [49152 + zlib.crc32(name.encode()) % 16384, 0]:
            try:
                super().__init__(("127.0.0.1", wanted), Handler)
                break
            except OSError as error:
                reason = error.strerror or error
        else:
            raise Fault(f"--port {port}: {reason}; without it a free one is taken")
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def server_bind(self):
        """HTTPServer's own asks the resolver for this machine's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address

    def handle_error(self, request, client_address):
        """A browser that went away is none; of all else one line."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"a request failed: {type(error).__name__}: {error}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # a connection for each request: none outlives the server
    server_version, sys_version, timeout = "minisagan", "", IDLE

    def do_GET(self):
        try:
            body = self._body()
            self._check_sender()
            handler = self.server.routes.get(f"{self.command} {self.path}")
            if handler is None:
                return self.send_error(404, "there is nothing here")
            return self._send(200, handler() if self.command == "GET" else handler(_parsed(body)))
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            return self.send_error(500, f"{error.filename or 'an operation of the system'}: {error.strerror or error}")
        except PermissionRefused as error:
            return self.send_error(403, str(error))
        except UsageError as error:
            return self.send_error(400, str(error))
        except Fault as error:
            return self.send_error(500, str(error))
        except Exception as error:
            return self.send_error(500, f"internal error, {type(error).__name__}: {error}")

    do_POST = do_GET

    def _body(self):
        """The body's bytes, none if no length is said; UsageError if it is too long or does not say how long it is."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,12}", length):
            raise UsageError("a body has to say its length")
        if int(length) <= MOST:
            return self.rfile.read(int(length))
        left = min(int(length), DRAINED)
        while left > 0 and (data := self.rfile.read(min(left, 1 << 16))):
            left -= len(data)
        raise UsageError(f"a body of {length} bytes, where {MOST} are the most")

    def _check_sender(self):
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or not re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", hosts[0]):
            raise PermissionRefused("this page is for 127.0.0.1 alone")
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            raise PermissionRefused("another page's requests are not answered")

    def send_error(self, code, message=None, explain=None):
        self._send(code, as_json({"error": " ".join(str(message or self.responses[code][0]).split())[:400]}))

    def _send(self, code, answer):
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.data)

    def log_message(self, *args):
        """Nothing: the terminal is the user's."""


class PermissionRefused(UsageError):
    """A request that another page sent, or that names another machine."""


def _parsed(body):
    """The JSON object in the bytes; UsageError for anything else, NaN and Infinity among it."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise UsageError("the body is not a JSON object")
    return value


def show(url):
    """Opens the user's browser, where there is a screen for one, without waiting for it."""
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
