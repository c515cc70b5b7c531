"""The pages in a real browser, where a mouse clicks and keys are pressed as a person does it.

`python tests/test_browser.py RUN` clicks a point of image 7 and stores the README's picture of play.
"""

import base64
import json
import shutil
import sys
import threading
import time

import command_line
import imageio.v3 as iio
import numpy as np
import pages
import pytest
from command_line import minisagan
from pages import serving, until
from test_play import decoded

from minisagan import data
from minisagan.look import play, report, server, watch

run, chromium = pages.run, pages.chromium  # fixtures


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(data, "DRAWN", command_line.FEW)


class Page:
    """What a person sees and does; `find` takes a CSS selector."""

    def __init__(self, window, url, dark=False, width=1200):
        self.window = window
        shape = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        window.get_log("browser")
        window.get(url)

    def find(self, selector):
        return self.window.find_element("css selector", selector)

    def all(self, selector):
        return self.window.find_elements("css selector", selector)

    def text(self, selector):
        """Read at one stroke: the page may replace the element at any moment."""
        return self.window.execute_script("return document.querySelector(arguments[0]).innerText", selector).strip()

    def click(self, element, x=0, y=0):
        """A click so far from the element's middle, in pixels."""
        from selenium.webdriver import ActionChains

        ActionChains(self.window).move_to_element_with_offset(element, x, y).click().perform()

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.window).send_keys(*keys).perform()

    def sources(self, selector=".sheet img"):
        script = "return Array.from(document.querySelectorAll(arguments[0]), (image) => image.src)"
        return self.window.execute_script(script, selector)

    def change(self, act):
        """Does `act`, and waits until the images are other ones: those."""
        before = self.sources()
        act()
        until(lambda: self.sources() != before and " ms" in self.text("#line"))
        return self.sources()

    def slide(self, name, key, times=1):
        self.find(f"#{name}").send_keys(key * times)

    def overflows(self):
        return self.window.execute_script("return document.documentElement.scrollWidth > innerWidth")

    def complaints(self):
        return [entry["message"] for entry in self.window.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(run, few, chromium):
    with serving(play.Play(run).routes()) as server:
        page = Page(chromium, server.url)
        until(lambda: page.sources() and " ms" in page.text("#line"))
        yield page
        assert page.complaints() == []


def test_images_change_when_something_is_chosen(page):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import Select

    first = page.sources()
    assert len(first) == 16 and page.text("h1").startswith("play ")
    page.change(lambda: page.click(page.find("#new")))
    page.change(lambda: Select(page.find("#label")).select_by_visible_text("7"))
    assert {button.text for button in page.all(".sheet button")} == {"7"}
    page.change(lambda: page.slide("t", Keys.ARROW_RIGHT, 10))
    assert "20 %" in page.text("#t-said")
    page.change(lambda: page.slide("truncation", Keys.HOME))
    page.change(lambda: page.slide("gamma", Keys.END))
    assert page.text("#gamma-said") == "4 times its value"
    page.click(page.find("#reset"))
    until(lambda: page.sources() == first)  # images that were on their way may come before


def test_a_click_on_a_point_shows_where_it_looks(page):
    images = page.all(".sheet img")
    box = images[5].rect
    page.click(images[5], box["width"] / 4, -box["height"] / 4)
    title = until(lambda: page.text(".look h3"))
    assert title.startswith("Where image 6, 5 looks from row 6, column 20")
    assert "Largest weight 0." in page.text(".numbers") and len(page.all(".look tbody tr")) == 5
    assert decoded(page.sources(".map img")[0]).shape == (336, 336, 3)
    big, before = page.find(".picture"), page.sources(".map img")
    page.click(big, -big.rect["width"] / 4, big.rect["height"] / 4)
    until(lambda: page.sources(".map img") != before)
    assert "row 20, column 6" in page.text(".look h3") or "row 21, column 7" in page.text(".look h3")


def test_the_keyboard_alone_reaches_everything(page):
    from selenium.webdriver import Keys

    page.find("#reset").send_keys(Keys.TAB, "")
    page.press(Keys.ENTER)
    until(lambda: "Where image 1, 0 looks from row 14, column 14" in page.text(".look h3"))
    page.find(".picture").send_keys(Keys.ARROW_UP)
    until(lambda: "row 12, column 14" in page.text(".look h3"))
    label = page.find(".picture").get_attribute("aria-label")
    assert label == "image 1, 0, point at row 12, column 14; arrow keys move it"


def test_tab_goes_through_all_that_can_be_chosen(page):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import Select

    page.click(page.all(".sheet img")[0])
    until(lambda: page.text(".look h3"))
    page.find("#network").send_keys("")
    where = "const at = document.activeElement; return at.id || at.className || at.parentElement.className"
    order = []
    for _ in range(29):
        order.append(page.window.execute_script(where))
        page.press(Keys.TAB)
    assert order == ["network", "label", "step", "beside", "seed", "new", "to", "new-to", "t", "truncation", "gamma",
                     "reset", *["sheet"] * 16, "picture"]  # fmt: skip
    page.find("#label").send_keys("")
    page.change(lambda: page.press(Keys.ARROW_DOWN))
    assert Select(page.find("#label")).first_selected_option.text == "0"


def test_everything_has_a_name_for_a_screen_reader(page):
    nodes = page.window.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = ("button", "combobox", "slider", "spinbutton", "img", "image", "application")
    found = [node for node in nodes if node.get("role", {}).get("value") in roles and not node["ignored"]]
    assert all(node["name"]["value"] for node in found)
    names = {(node["role"]["value"], node["name"]["value"].strip()) for node in found}  # Chromium 150 keeps spaces
    assert names == {
        *(("combobox", name) for name in ("Network", "Class", "Step", "Beside it")),
        *(("spinbutton", name) for name in ("Latents, seed", "Towards, seed")),
        *(("slider", name) for name in ("On the way", "Truncation", "Gamma")),
        *(("button", name) for name in ("New latents", "New latents to go to", "Back to the start")),
        *(("button", f"image {n + 1}, {n % 10}") for n in range(16)),
    }
    spoken = [page.find(f"#{name}").get_attribute("aria-valuetext") for name in ("t", "truncation", "gamma")]
    assert spoken == ["0 %", "none", "1 times its value"]
    assert page.find("#line").get_attribute("role") == "status" and page.all("[aria-live=polite]")


def test_two_steps_stand_side_by_side(page):
    from selenium.webdriver.support.ui import Select

    page.change(lambda: Select(page.find("#beside")).select_by_value("1"))
    sides = page.all(".side")
    assert [side.find_element("css selector", "h2").text.split(",")[0] for side in sides] == ["Step 3", "Step 1"]
    assert sides[0].rect["y"] == sides[1].rect["y"]
    page.click(page.all(".sheet img")[2])
    until(lambda: len([found for found in page.all(".look h3") if "Where image 3" in found.text]) == 2)


def test_the_discriminator_looks_at_real_images(page):
    from selenium.webdriver.support.ui import Select

    page.change(lambda: Select(page.find("#network")).select_by_value("discriminator"))
    assert "D " in page.all(".sheet button")[0].text and not page.find("#t").is_displayed()
    page.click(page.all(".sheet img")[0])
    until(lambda: "Where image 1" in page.text(".look h3"))


KINDS = {  # of runs: the data's size and channels, the options, how many images are shown
    "RGB, 128, two classes": (128, 3, ("--ema", 0), 8),
    "RGB, 256, no classes": (256, 3, ("--unconditional",), 4),
    "grey, 64, no attention": (64, 1, ("--attention", "none", "--channels", 1), 16),
}


@pytest.mark.parametrize("size, channels, options, count", KINDS.values(), ids=KINDS)
def test_runs_of_every_kind(few, chromium, tmp_path, monkeypatch, size, channels, options, count):
    for k, name in enumerate(["cat", "a dog of a rather long name"] * 2):
        image = np.random.RandomState(k).randint(0, 256, (size, size, channels)).astype(np.uint8)
        (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
        iio.imwrite(tmp_path / "pets" / name / f"{k}.png", image.squeeze())
    minisagan("train", "--dataset", tmp_path / "pets", "--size", size, "--width", 4, "--batch-size", 2, "--steps", 1,
              "--sample-every", 0, "--threads", 2, *options, "--out", tmp_path / "run")  # fmt: skip
    monkeypatch.setattr(report, "MEASURED", 8)
    classes, attention = "--unconditional" not in options, "none" not in options
    for width, least in ((400, 2), (1300, 4)):
        with serving(play.Play(tmp_path / "run").routes()) as server:
            page = Page(chromium, server.url, width=width)
            until(lambda page=page: page.sources() and " ms" in page.text("#line"), 60)
            images = page.all(".sheet img")
            assert [decoded(uri).shape for uri in page.sources()] == [(size, size, channels)] * count
            tops = [image.rect["y"] for image in images]
            rows = sorted(set(tops))
            assert tops == sorted(tops) and tops.count(rows[0]) >= least  # whole rows, whatever the names' lengths
            assert images[0].rect["width"] >= min(72, size) and images[0].rect["width"] == images[0].rect["height"]
            assert ("without classes" in page.text("#hint")) is not classes
            assert page.find("#label").is_displayed() is classes and page.find("#gamma").is_displayed() is attention
            page.click(images[count - 1], 5, 5)
            if attention:
                until(lambda page=page: page.text("#line").startswith("Map in"), 60)
                assert f"Where image {count}" in page.text(".look h3")
                assert decoded(page.sources(".map img")[0]).shape[0] >= max(320, size)
            else:
                until(lambda page=page: "without attention: there is no map" in page.text("#line"))
            assert not page.overflows() and page.complaints() == []
        with serving(watch.Watch(tmp_path / "run").routes()) as server:
            page = Page(chromium, server.url, width=width)
            until(lambda page=page: page.all("#configuration"), 60)
            assert ("a row for each class" in page.text("#samples")) is classes
            assert bool(page.all("#attention")) is attention and len(page.all("svg")) == (6 if attention else 4)
            assert not page.overflows() and page.complaints() == []


def test_watch_says_how_the_run_is_while_a_section_takes_long_and_another_breaks(run, few, chromium, tmp_path):
    routes, asked = watch.Watch(run).routes(), []
    whole, release = routes["GET /section/attention"], threading.Event()
    lines = iter(["first", "second", "third"])
    routes["GET /state"] = lambda: server.as_json(json.loads(watched.state().data) | {"status": next(lines, "fourth")})
    watched = watch.Watch(run)

    def slow():
        asked.append(time.monotonic())
        release.wait(60)
        return whole()

    def broken():
        raise ZeroDivisionError("no such thing")

    routes |= {"GET /section/attention": slow, "GET /section/samples": broken}
    with serving(routes) as page_server:
        page = Page(chromium, page_server.url)
        until(lambda: asked and page.text("#line") in ("second", "third"))
        before = len(asked)
        until(lambda: page.text("#line") == "fourth")
        assert len(asked) == before and not page.all("#configuration") and page.all("#curves")
        assert page.text("#place-samples") == "samples: internal error, ZeroDivisionError: no such thing"
        release.set()
        until(lambda: page.all("#configuration"))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 500, 1200])
def test_narrow_and_wide_light_and_dark(run, few, chromium, dark, width):
    with serving(play.Play(run).routes()) as server:
        page = Page(chromium, server.url, dark, width)
        until(lambda: page.sources() and " ms" in page.text("#line"))
        page.click(page.all(".sheet img")[0])
        until(lambda: page.text(".look h3"))
        assert not page.overflows()
        colour = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert colour == ("rgb(22, 24, 28)" if dark else "rgb(250, 250, 248)")
    with serving(watch.Watch(run).routes()) as server:
        page = Page(chromium, server.url, dark, width)
        until(lambda: page.all("#configuration"))
        assert not page.overflows()


def test_a_page_of_watch_follows_the_run_its_end_and_the_servers_restart(run, few, chromium, tmp_path):
    folder = shutil.copytree(run, tmp_path / "followed")
    config = json.loads((folder / "config.json").read_text())
    config["config"]["steps"] = 20
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "log.jsonl").touch()  # its news are fresh
    routes = watch.Watch(folder).routes()
    with serving(routes) as server:
        page = Page(chromium, server.url)
        until(lambda: page.all("#configuration"))
        assert page.text("#line").startswith("training: step 1 of 20") and page.text("h1").startswith("followed: drawn")
        assert len(page.all("svg")) == 6 and len(page.all("section")) == 4
        port = server.server_port
        with open(folder / "log.jsonl", "a") as log:
            log.write('{"step": 10, "seconds": 9.0, "loss_d": 77.25, "loss_g": 1.0}\n')
        until(lambda: "77.25" in page.text("#curves") and "step 10 of 20" in page.text("#line"))
        with open(folder / "log.jsonl", "a") as log:
            log.write('{"step": 20, "seconds": 19.0, "loss_d": 78.25, "loss_g": 1.0}\n')
        until(lambda: page.text("#line").startswith("done: all 20 steps"))
        assert page.complaints() == []
    until(lambda: "has ended: this is the last it showed" in page.text("#line"))
    assert len(page.all("svg")) == 6
    with serving(routes, port):
        until(lambda: page.text("#line").startswith("done"))


def store_picture(run):
    """examples/pictures/play.png: the page with the map of a point of the seventh image."""
    window = pages.open_chromium()
    with serving(play.Play(run).routes()) as server:
        page = Page(window, server.url, width=1000)
        until(lambda: page.sources() and " ms" in page.text("#line"), 60)
        page.click(page.all(".sheet img")[6], 4, 8)
        until(lambda: page.text("#line").startswith("Map in"), 60)
        height = page.find("#sides").rect["y"] + page.find("#sides").rect["height"] + 30
        clip = {"x": 0, "y": 0, "width": 1000, "height": height, "scale": 1}
        shot = window.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    window.quit()
    (command_line.ROOT / "examples" / "pictures" / "play.png").write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    store_picture(sys.argv[1])
