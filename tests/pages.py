"""How the tests ask the pages of minisagan watch and play, and click in them."""

import http.client
import json
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
from command_line import FEW, SMALL, minisagan

from minisagan import data
from minisagan.look import server


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 3 steps so large that classes and gamma show in its images."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DRAWN", FEW)
        rates = "--lr-g", 0.005, "--fall", 0, "--ema", 0
        minisagan("train", *SMALL, "--steps", 3, "--checkpoint-every", 1, *rates, "--out", folder)
    return folder


@contextmanager
def serving(routes, port=0):
    """A server with these routes, until the end of the `with`."""
    with server.Server(routes, "test", port) as page:
        threading.Thread(target=page.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield page
        finally:
            page.shutdown()


def ask(page, method, path, body=None, headers=None):
    """(status, headers, what came: JSON's value or the bytes); a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=60)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        reply = connection.getresponse()
        came = reply.read()
    finally:
        connection.close()
    is_json = reply.headers.get_content_type() == "application/json"
    return reply.status, reply.headers, json.loads(came) if is_json else came


def until(condition, seconds=60):
    """What the condition returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="session")
def chromium():
    """A driver of Chromium without a window; where there is none the test is skipped, visibly."""
    window = open_chromium()
    yield window
    window.quit()


def open_chromium():
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium", exc_type=ImportError)
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1200,1400"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))
