"""minisagan watch: the report's sections, served one by one, and again when they changed."""

import json
import os
import re
import shutil
import signal
from functools import partial

import command_line
import pytest
from command_line import SMALL, minisagan, refused, start
from pages import ask, serving

from minisagan.look import report, watch
from minisagan.run import checkpoint

apart, run, photos = command_line.apart, command_line.run, command_line.photos  # fixtures
pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def state(page):
    return ask(page, "GET", "/state")[2]


def section(page, name):
    status, _, came = ask(page, "GET", f"/section/{name}")
    assert status == 200
    return came["html"]


def test_the_sections_are_those_of_the_report(copy):
    with serving(watch.Watch(copy).routes()) as page:
        assert list(state(page)["sections"]) == list(report.SECTIONS)
        text, position = report.page(copy), 0
        for name in report.SECTIONS:
            position = text.index(section(page, name), position)


def test_a_section_is_made_anew_only_when_its_files_changed(copy, monkeypatch):
    made = []
    counted = lambda name, make, whole: made.append(name) or make(whole)
    for name, make in report.SECTIONS.items():
        monkeypatch.setitem(report.SECTIONS, name, partial(counted, name, make))
    with serving(watch.Watch(copy).routes()) as page:
        before = state(page)["sections"]
        for _ in range(2):
            for name in before:
                section(page, name)
        assert made == list(report.SECTIONS)
        with open(copy / "log.jsonl", "a") as log:
            log.write('{"step": 4, "seconds": 9.0, "loss_d": 123.5, "loss_g": 1.0}\n')
        after = state(page)["sections"]
        assert [name for name in after if after[name] != before[name]] == ["curves"]
        assert "discriminator 123.5" in section(page, "curves")
        shutil.copy(copy / "samples" / "step-00000003.png", copy / "samples" / "step-00000004.png")
        assert "Step 4" in section(page, "samples")
        (copy / "evaluation.json").write_text("{")
        assert "evaluation.json: not written by minisagan evaluate" in section(page, "metrics")


def test_a_run_that_is_deleted_or_replaced_meanwhile(copy):
    with serving(watch.Watch(copy).routes()) as page:
        away = copy.rename(copy.with_name("away"))
        assert "cannot be read now" in state(page)["status"]
        assert "a report is about a run" in section(page, "attention")
        away.rename(copy)
        assert "Maps" in section(page, "attention") and state(page)["status"].startswith("done: all 3 steps")


def test_a_run_of_another_version_one_without_checkpoints_and_one_that_is_resumed(copy):
    tensors, about = checkpoint.load(newest := copy / "checkpoints" / "step-00000003.safetensors")
    config = json.loads(about["config"])
    with serving(watch.Watch(copy).routes()) as page:
        minisagan("train", "--resume", copy, "--steps", 5, "--threads", 1)
        assert state(page)["status"].startswith("done: all 5 steps") and "step 5 of 5" in section(page, "title")
        (copy / "checkpoints" / "step-00000005.safetensors").unlink()
        checkpoint.save(newest, tensors, about | {"config": json.dumps(config | {"tempo": 1})})
        assert "this version of minisagan doesn&#x27;t know tempo" in section(page, "configuration")
        shutil.rmtree(copy / "checkpoints")
        assert "no readable checkpoint" in state(page)["status"] and "no readable" in section(page, "title")
        assert "<svg" in section(page, "curves")  # what can be shown is


def test_how_a_run_stands(copy):
    config = json.loads((copy / "config.json").read_text())
    config["config"] |= {"steps": 1000, "batch_size": 10}
    (copy / "config.json").write_text(json.dumps(config))
    records = [{"step": step, "seconds": step / 4} for step in range(10, 201, 10)]
    (copy / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    written = (copy / "log.jsonl").stat().st_mtime
    stands = lambda later: watch.standing(copy, written + later)
    assert stands(0) == "training: step 200 of 1,000, 40 images/s, 3 min 20 s left"
    assert stands(10) == "training: step 200 of 1,000, 40 images/s, 3 min 10 s left"
    assert stands(59).startswith("training") and stands(61).startswith("at rest")
    slow = [{"step": step, "seconds": 30 * step} for step in range(10, 201, 10)]  # 50 such steps may be silent
    (copy / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in slow))
    assert stands(1490).startswith("training") and stands(1510).startswith("at rest")
    (copy / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert stands(7200) == "at rest: step 200 of 1,000, 50 s of training; no news for 2 h 00 min"
    whole = json.dumps({"step": 1000, "seconds": 250.0}) + "\n"
    (copy / "log.jsonl").write_text(whole)
    assert stands(0) == "done: all 1,000 steps, after 4 min 10 s of training"
    config["config"]["steps"] = 3  # the log has the records of some steps, the checkpoint the time of all
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "log.jsonl").write_text('{"step": 1, "seconds": 0.25}\n')
    tensors, about = checkpoint.load(newest := copy / "checkpoints" / "step-00000003.safetensors")
    checkpoint.save(newest, tensors, about | {"seconds": "62.5"})
    assert stands(0) == "done: all 3 steps, after 1 min 02 s of training"
    config["config"]["steps"] = 1000
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "log.jsonl").write_text("")
    assert stands(0) == "step 0 of 1,000: no step is logged yet"


def test_the_folder_is_only_read(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    with serving(watch.Watch(copy).routes()) as page:
        for name in state(page)["sections"]:
            section(page, name)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_ctrl_c_ends_it_at_once_and_started_anew_it_is_where_it_was(run):
    urls = []
    for _ in range(2):
        with start("watch", run, "--no-browser", text=True) as child:
            line = child.stdout.readline()
            urls.append(re.match(rf"(http://127\.0\.0\.1:\d+/)  watch {run}, for this machine alone", line)[1])
            child.send_signal(signal.SIGINT)
            assert child.wait(60) == 130 and child.stderr.read() == ""
    assert urls[0] == urls[1]


def test_train_watch_shows_the_run_and_goes_with_the_training(tmp_path):
    (tmp_path / "socketserver.py").write_text("raise SystemExit('code of this folder ran')")  # a library's name
    with start("train", *SMALL, "--steps", 100_000, "--watch", "--out", tmp_path / "run", text=True,
               extra="import os; os.environ['MINISAGAN_WATCH_BROWSER'] = '0'; ") as child:  # fmt: skip
        lines = iter(child.stderr.readline, "")
        port = int(next(re.search(r"127\.0\.0\.1:(\d+)/", line)[1] for line in lines if "http://" in line))
        page = type("Page", (), {"server_port": port})
        assert re.match("training: step|step 0", state(page)["status"])
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert state(page)["status"]  # for LINGER seconds more
    watcher = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if str(tmp_path) in command_of(pid)]
    assert len(watcher) == 1
    os.kill(int(watcher[0]), signal.SIGTERM)


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def test_what_cannot_be_watched_is_one_line(run, tmp_path):
    assert "nowhere: a report is about a run's folder" in refused("watch", "nowhere")
    assert "a report is about a run's folder" in refused("watch", run / "checkpoints" / "step-00000003.safetensors")
    assert minisagan("watch", "-h")[0].count("--beside") == 0
