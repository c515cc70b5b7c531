"""The report: one whole page of HTML that holds each part and needs nothing else."""

import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import command_line
import numpy as np
import pytest
from command_line import SMALL, minisagan, refused

from minisagan import rng
from minisagan.commands import attention as commands
from minisagan.look import attention_maps, plot, report
from minisagan.look.words import duration
from minisagan.run import checkpoint
from minisagan.run import folder as runs

apart, run, photos = command_line.apart, command_line.run, command_line.photos  # fixtures
pytestmark = pytest.mark.usefixtures("apart")

VOID = {"meta", "img", "source", "br", "line", "path"}  # no closing tag; the last two close themselves


class Page(HTMLParser):
    """The elements of a page: (tag, attributes, ids of the sections around it), and the text of each element."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} twice"
        self.found.append((tag, dict(attrs), [around.get("id") for _, around in self.open]))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop()[0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1][0] if self.open else "", data.strip()))

    def all(self, tag, section=None):
        return [attrs for name, attrs, around in self.found if name == tag and (section is None or section in around)]

    def of(self, tag):
        return [text for name, text in self.texts if name == tag]


def written(run, *args):
    stdout, _ = minisagan("report", run, *args)
    path = re.match(r"(.+): \d+\.\d MB, to be opened", stdout)[1]
    with open(path, encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


EVALUATION = {
    "step": 3, "count": 1234, "train_count": 1200,
    "classifier": {"hash": "c0ffee" * 9, "accuracy": 0.98765, "features": 128},
    "metrics": {"frechet": 3.14159, "kid": 0.00042, "precision": 0.5, "recall": 0.25, "score": 8.5, "accuracy": 0.9321,
                "worst_accuracy": 0.8, "worst_class": "7"},
    "floor": {"frechet": 0.1719, "kid": 0.00001, "precision": 0.9, "recall": 0.91, "score": 9.9, "accuracy": 0.99,
              "worst_accuracy": 0.97, "worst_class": "9"},
}  # fmt: skip


def test_the_page_holds_every_part_and_refers_to_nothing_outside(copy):
    (copy / "evaluation.json").write_text(json.dumps(EVALUATION))
    text = written(copy)
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and (copy / "report.html").is_file()
    sections = [attrs["id"] for attrs in page.all("section")]
    assert sections == ["samples", "curves", "attention", "metrics", "configuration"]
    assert page.of("h1") == ["copy: drawn-digits, step 3 of 3"]

    names = "src", "srcset", "href", "data", "action"
    references = [a[name] for _, a, _ in page.found for name in names if name in a]
    assert references and all(reference.startswith("data:image/") for reference in references)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert not re.search(r"url\(|@import|https?:|\bon\w+=", re.sub(r"base64,[\w+/=]+", "", text))

    sources = [base64.b64decode(a["src"].split("base64,")[1]) for a in page.all("img", "samples")]
    assert sources == [(copy / "samples" / "step-00000003.png").read_bytes(), (copy / "progress.gif").read_bytes()]
    assert all(a["alt"] for a in page.all("img"))
    assert len(page.all("svg", "curves")) == 6  # of 9: two need evaluations, one samples
    assert len(page.all("img", "attention")) == 1
    assert "config.json beside the log replays the run." in text
    seconds = float(checkpoint.read_metadata(runs.find(copy))["seconds"])
    assert f"minisagan, after {duration(seconds)} of training" in text
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"changes": [], "init_from": {}}))
    assert "does not replay the run by itself: changes and init_from in it say why." in written(copy)


def test_names_in_a_run_are_text_on_the_page_and_nothing_else(copy):
    name = "<img src=x onerror=alert(1)>"
    told = json.loads(json.dumps(EVALUATION).replace('"7"', json.dumps(name)))
    (copy / "evaluation.json").write_text(json.dumps(told))
    page = Page(text := written(copy))
    assert name in page.of("td") and all(attrs["src"].startswith("data:") for attrs in page.all("img"))
    (policy,) = (attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:" and name not in text


def test_the_page_says_what_was_measured_and_configured(copy):
    (copy / "evaluation.json").write_text(json.dumps(EVALUATION))
    text = written(copy)
    cells = re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td>(?:<td>(.*?)</td>)?</tr>", text)
    rows = {name: values for name, *values in cells}
    assert rows["Frechet distance"] == ["3.142", "0.172"] and rows["class asked for"] == ["93.21%", "99.00%"]
    assert rows["recall (k = 3)"] == ["0.250", "0.910"]
    assert "1,234 images at step 3, beside 1,200 real ones" in text
    assert "c0ffeec0ffeec0ff," in text and "accuracy 98.77%" in text
    assert rows["width"][0] == "8" and rows["batch_size"][0] == "8" and rows["numpy"][0] == np.__version__
    assert rows["images"][0] == "28x28 pixels" and len(rows["sha256 of labels"][0]) == 64
    G, _, _, _ = runs.load_generator(copy)
    facts = attention_maps.measure(G, rng.normal((64, 128), 0, rng.Stream.SAMPLE_Z, 0), np.arange(64) % 10)
    assert rows["gamma"][0] == f"{facts['gamma']:+.4f}" and rows["ratio"][0].endswith(f"{facts['ratio']:.3f}")
    assert rows["entropy"][0].startswith(f"{facts['entropy_bits']:.2f} bits")


def test_the_maps_are_those_of_the_command(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "MEASURED", 9)
    image = Page(written(copy)).all("img", "attention")[0]
    minisagan("attention", copy, "--count", 6)
    assert base64.b64decode(image["src"].split("base64,")[1]) == (tmp_path / "attention.png").read_bytes()


def chart_of(log, title, ylabel, *series):
    return report._chart(plot.of_log(log, title, ylabel, series))


def line(text, k, kind="line"):
    """The points (n, 2) of series k in a chart."""
    path = re.search(rf'class="{kind} [lf]{k}" d="M(.*?)Z?"', text)[1]
    return np.array([point.split(",") for point in path.split("L")], float)


def test_a_chart_draws_the_values_where_they_are():
    log = [{"step": k, "loss_d": 2.0, "loss_g": k / 10} for k in range(0, 11)]
    chart = chart_of(log, "Losses", "loss", ("a", "loss_d"), ("b <b>", "loss_g"))
    level, rising = line(chart, 0), line(chart, 1)
    assert (level[:, 1] == level[0, 1]).all() and (np.diff(rising[:, 1]) < 0).all()  # up is less
    np.testing.assert_allclose(np.diff(rising[:, 0]), (440 - 58 - 24) / 10, atol=0.11)
    ticks = {float(label): float(y) - 4 for y, label in re.findall(r'y="([\d.]+)" text-anchor="end">([-\d.]+)<', chart)}
    assert ticks[2] == pytest.approx(level[0, 1], abs=0.11) and ticks[0] == pytest.approx(rising[0, 1], abs=0.11)
    assert ticks[1] == pytest.approx(rising[-1, 1], abs=0.11)
    assert "b &lt;b&gt; 1</span>" in chart and "a 2</span>" in chart


def test_a_band_lies_between_least_and_greatest_and_what_is_not_there_is_left_out():
    log = [{"step": k, "low": 0.0, "mid": 1.0 + k / 9, "high": 4.0} for k in range(10)]
    log += [{"step": 10}, {"step": 11, "low": float("nan"), "mid": 1.0, "high": 1.0}]
    chart = chart_of(log, "Sigma", "sigma", ("x", "mid low high"), ("absent", "a b c"))
    band, middle = line(chart, 0, "band"), line(chart, 0)
    assert len(band) == 20 and len(middle) == 10 and "absent" not in chart and "pale" not in chart
    low, high = band[:10, 1], band[10:, 1]
    assert (low == low[0]).all() and (high == high[0]).all()
    np.testing.assert_allclose((low[0] - middle[:, 1]) / (low[0] - high[0]), (1 + np.arange(10) / 9) / 4, atol=0.002)
    assert chart_of(log, "Sigma", "sigma", ("absent", "a")) == ""
    assert line(chart_of(log[:1], "One", "x", ("x", "mid")), 0).shape == (2, 2)  # a lone point can be seen


def test_a_long_log_is_thinned_to_its_ends():
    log = [{"step": k, "x": float(k % 7)} for k in range(5000)]
    points = line(chart_of(log, "x", "x", ("x", "x")), 0, "pale")
    assert len(points) == 400 and points[0, 0] == 58 and points[-1, 0] == 440 - 24


def test_a_run_without_attention_or_classes_or_evaluation_has_less(photos, tmp_path):
    minisagan("train", *SMALL, "--steps", 0, "--attention", "none", "--out", "x")
    page = Page(written("x", "-o", tmp_path / "a.html"))
    assert [attrs["id"] for attrs in page.all("section")] == ["samples", "curves", "configuration"]
    assert not page.all("svg") and not (tmp_path / "x" / "report.html").exists()
    page = Page(written(photos / "run", "-o", "b.html"))
    assert "attention" in [attrs["id"] for attrs in page.all("section")]
    assert len(page.all("svg", "curves")) == 6


def test_names_are_text_not_html(copy, monkeypatch):
    load = runs.load_generator

    def named(path):
        generator, config, about, file = load(path)
        names = ["<script>alert(1)</script>", *about["classes"][1:]]
        return generator, replace(config, dataset="/a/<i>&"), about | {"classes": names}, file

    monkeypatch.setattr(runs, "load_generator", named)
    text = written(copy)
    Page(text)
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text and "&lt;i&gt;&amp;" in text and "<i>" not in text


def test_what_cannot_be_reported_is_one_line(copy, tmp_path):
    assert "nowhere: a report is about a run's folder" in refused("report", "nowhere")
    file = copy / "checkpoints" / "step-00000003.safetensors"
    assert "a report is about a run's folder" in refused("report", file)
    assert "-o a.pdf: the name of this file has to end in .html" in refused("report", copy, "-o", "a.pdf")
    assert "absent/a.html: not written: No such file" in refused("report", copy, "-o", "absent/a.html", code=1)
    values = {"metrics": {"frechet": "x"}}, {"count": float("inf")}
    for wrong in ("[]", "{", "[" * 100_000, '{"step": 1}', *(json.dumps(EVALUATION | value) for value in values)):
        (copy / "evaluation.json").write_text(wrong)
        line = refused("report", copy, code=3)
        assert "evaluation.json: not written by minisagan evaluate" in line
    assert not (copy / "report.html").exists() and not list(tmp_path.rglob("*.tmp"))


def test_a_log_whose_end_is_no_text_counts_up_to_there(copy):
    before = runs.read_log(copy)
    with open(copy / "log.jsonl", "ab") as log:
        log.write(b'{"step": 4, \xff\n')
    assert before and runs.read_log(copy) == before


@pytest.mark.parametrize("line", ['{"step": "x"}', "[1, 2]", '{"step": 4, "loss_d": [1]}', "null"])
def test_a_line_that_is_no_record_hides_none_that_follows(copy, line):
    before = runs.read_log(copy)
    with open(copy / "log.jsonl", "a") as log:
        log.write(line + '\n{"step": 5, "loss_d": 1.0}\n')
    assert before and runs.read_log(copy) == [*before, {"step": 5, "loss_d": 1.0}]


def test_a_page_of_numbers_beyond_drawing_and_of_pictures_that_are_not_the_runs(copy):
    with open(copy / "log.jsonl", "a") as log:
        log.write('{"step": 4, "loss_d": 1e308, "loss_g": -1e308}\n')
    last = runs.sampled(copy)[-1]
    (copy / "samples" / "step-abc.png").write_bytes(b"no picture")
    assert runs.sampled(copy)[-1] == last
    minisagan("report", copy)
    assert f"Step {last[0]:,}" in (copy / "report.html").read_text()
