"""The server of pages, attacked by raw requests: it answers a fixed table, to this machine's browser, and goes on."""

import socket
import threading

import pytest
from pages import ask, serving

from minisagan.errors import DataError, Fault, UsageError
from minisagan.look import server


def crash(*_):
    raise ZeroDivisionError("a\nb")


def fault(error):
    def handler(*_):
        raise error

    return handler


@pytest.fixture(scope="module")
def page():
    routes = {
        "GET /": server.asset("play.html"), "POST /echo": server.as_json, "POST /crash": crash, "GET /crash": crash,
        "POST /usage": fault(UsageError("class 99")), "POST /data": fault(DataError("x is damaged")),
        "GET /disk": fault(OSError(28, "No space left", "/a")),
    }  # fmt: skip
    with serving(routes) as page:
        yield page
        assert ask(page, "POST", "/echo", {"still": "there"})[2] == {"still": "there"}


def raw(page, data):
    """All that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", page.server_port), 20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_it_listens_on_the_loopback_address_alone(page):
    assert page.server_address[0] == "127.0.0.1" and page.url == f"http://127.0.0.1:{page.server_port}/"


def test_a_page_may_run_and_load_nothing_from_elsewhere(page):
    status, headers, came = ask(page, "GET", "/")
    assert status == 200 and came.startswith(b"<!DOCTYPE html>") and headers["Content-Type"].startswith("text/html")
    policy = headers["Content-Security-Policy"]
    assert dict(part.strip().split(" ", 1) for part in policy.split(";")) == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self' data:",
        "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    others = {"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin"}
    others |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
    assert others.items() <= dict(headers).items()
    assert "Content-Security-Policy" in ask(page, "GET", "/absent")[1]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0", "", "[::1]",
                                  "127.0.0.1:80@evil", "127.0.0.2", "localhost:123456"])  # fmt: skip
def test_a_foreign_host_is_refused(page, host):
    assert ask(page, "GET", "/", headers={"Host": host})[::2] == (403, {"error": "this page is for 127.0.0.1 alone"})


def test_no_host_and_two_hosts_are_refused(page):
    assert raw(page, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.0 403")
    assert raw(page, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.0 403")


def test_a_foreign_origin_is_refused_and_the_pages_own_is_not(page):
    own = f"127.0.0.1:{page.server_port}"
    for origin in ("http://evil.example", "null", f"https://{own}", "http://127.0.0.1:1", f"http://{own}.evil"):
        assert ask(page, "POST", "/echo", {}, {"Origin": origin})[0] == 403
    assert ask(page, "POST", "/echo", {}, {"Origin": f"http://{own}"})[0] == 200
    tunnel = {"Host": "localhost:9000", "Origin": "http://localhost:9000"}  # ssh -L 9000:...
    assert ask(page, "POST", "/echo", {}, tunnel)[0] == 200


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "/play.html", "/report.py", "//etc",
                                  "/?x", "/etc/passwd", "http://127.0.0.1/", "*", "/\\..\\x", "/echo"])  # fmt: skip
def test_a_path_is_no_file(page, path):
    data = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    came = raw(page, data)
    assert came.startswith(b"HTTP/1.0 404") and came.endswith(b'{"error": "there is nothing here"}')


def test_other_methods_and_bad_requests_are_refused(page):
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert ask(page, method, "/")[0] == 501
    assert b'"error": "Bad request version' in raw(page, b"what is this\r\n\r\n")
    assert raw(page, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n").startswith(b"HTTP/1.0 431")
    assert raw(page, b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 414")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"a": NaN}', b'{"a": Infinity}', b"\xff", b"[" * 4000,
                                  b'{"a": ' + b"9" * 4080 + b"}"])  # fmt: skip
def test_a_body_that_is_no_json_object_is_one_line(page, body):
    status, _, came = ask(page, "POST", "/echo", body)
    if body.startswith(b'{"a": 9'):  # a long number is one
        assert status == 200
    else:
        assert status == 400 and came.keys() == {"error"} and "\n" not in came["error"]


def test_long_bodies_are_refused(page):
    latent = {"z": [0.1234567] * 1_000_000}
    status, _, came = ask(page, "POST", "/echo", latent)
    assert status == 400 and "4096 are the most" in came["error"]
    for length in (b"-1", b"1e3", b"9" * 30):
        wrong = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n"
        assert raw(page, wrong).startswith(b"HTTP/1.0 400")
    chunked = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert raw(page, chunked).startswith(b"HTTP/1.0 400")


def test_what_fails_is_one_line_and_the_server_goes_on(page):
    for method in ("GET", "POST"):
        answer = ask(page, method, "/crash", {} if method == "POST" else None)
        assert answer[::2] == (500, {"error": "internal error, ZeroDivisionError: a b"})
    assert ask(page, "POST", "/usage", {})[::2] == (400, {"error": "class 99"})
    assert ask(page, "POST", "/data", {})[::2] == (500, {"error": "x is damaged"})
    assert ask(page, "GET", "/disk")[::2] == (500, {"error": "/a: No space left"})


def test_who_goes_away_or_says_nothing_does_not_stop_the_others(page):
    idle = [socket.create_connection(("127.0.0.1", page.server_port)) for _ in range(20)]
    for connection in idle[:10]:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        connection.close()
    assert ask(page, "GET", "/")[0] == 200
    for connection in idle[10:]:
        connection.close()


def test_a_burst_of_connections_waits_to_be_taken():
    """Nobody takes them yet: those beyond the length of the queue would be sent again, after seconds."""
    with server.Server({"GET /": server.asset("play.html")}, "test") as page:
        waiting = [socket.create_connection(("127.0.0.1", page.server_port), 2) for _ in range(100)]
        threading.Thread(target=page.serve_forever, args=(0.02,), daemon=True).start()
        assert ask(page, "GET", "/")[0] == 200
        for connection in waiting:
            connection.close()
        page.shutdown()


def test_a_port_that_is_taken_is_one_line_and_without_one_another_is_found(page):
    with pytest.raises(Fault, match=f"--port {page.server_port}: .*in use; without it a free one"):
        server.Server({}, "test", page.server_port)
    with server.Server({}, "test") as other:
        assert other.server_port != page.server_port


@pytest.mark.parametrize("value", [None, True, "1", [1], float("nan"), float("inf"), -1, 11, 10.5, 10**400])
def test_a_number_is_one_within_bounds(value):
    with pytest.raises(UsageError, match=r"class must be a whole number from 0 to 10, not .{1,40}$"):
        server.number(value, "class", 0, 10, whole=True)
    assert server.number(10, "class", 0, 10, whole=True) == 10 and server.number(0.5, "t", 0, 1) == 0.5
