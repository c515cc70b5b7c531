"""The report of a run as a page that follows it: its sections are asked for one by one, and anew when they changed.

Only the run's folder is read, so the training may be another process's, or another machine's on a shared disk.
"""

import json
import threading
import time
import zlib
from functools import partial

from minisagan import variety
from minisagan.errors import Fault
from minisagan.look import report, server
from minisagan.look.words import duration
from minisagan.run import checkpoint
from minisagan.run import folder as runs
from minisagan.run.loop import LOG_EVERY

RECENT = 10  # records of the log that the speed is taken from
SILENCE = 60.0  # seconds without a record after which a training counts as stopped, unless its steps take as long:
LATE = 5  # times the time between two regular records must then be over


class Watch:
    """What the page asks of the run in `folder`; UsageError if it holds none."""

    def __init__(self, folder):
        self.report, self.of = report.Report(folder), None  # the report, and the stamp of the checkpoint that it is of
        self.folder = self.report.folder
        self.lock, self.kept = threading.Lock(), {}  # section -> (stamp, html)

    def routes(self):
        files = {"/": "watch.html", "/watch.js": "watch.js", "/report.css": "report.css"}
        return {
            **{f"GET {path}": server.asset(name) for path, name in files.items()},
            "GET /state": self.state,
            **{f"GET /section/{name}": partial(self.section, name) for name in report.SECTIONS},
        }

    def state(self):
        """How far the run is, and for each section the stamp that tells if it changed."""
        stamps = {name: self._stamp(name) for name in report.SECTIONS}
        return server.as_json({"status": standing(self.folder), "sections": stamps})

    def section(self, name):
        """The section's HTML with its stamp; one that cannot be read now says why, and is asked for again."""
        with self.lock:
            stamp = self._stamp(name)  # before reading: what changes meanwhile is seen next time
            if name not in self.kept or self.kept[name][0] != stamp:
                try:
                    if self.of != (now := self._stamp("title")):
                        self.report, self.of = report.Report(self.folder), now
                    self.kept[name] = stamp, self.report.section(name)
                except (Fault, OSError) as error:
                    return server.as_json({"stamp": "", "html": report.trouble(name, error)})
        return server.as_json(dict(zip(("stamp", "html"), self.kept[name], strict=True)))

    def _stamp(self, name):
        try:
            files = [(path, path.stat()) for path in report.files_of(name, self.folder) if path.exists()]
        except (Fault, OSError) as error:
            return str(error)
        return f"{zlib.crc32(repr([(str(path), s.st_mtime_ns, s.st_size) for path, s in files]).encode()):08x}"


def standing(folder, now=None):
    """How far a run is, in a line: training, at rest or done; its speed; the time left."""
    try:
        config = json.loads((folder / "config.json").read_text())["config"]
        log, written = runs.read_log(folder), (folder / "log.jsonl").stat().st_mtime
        newest = checkpoint.read_metadata(runs.find(folder))  # of the last steps the log may have no record
        saved, seconds = int(newest["step"]), float(newest["seconds"])
        steps, images = config["steps"], config["batch_size"] * config["d_steps"]
    except (Fault, OSError, ValueError, KeyError, TypeError) as error:
        return f"the run cannot be read now: {error}"
    silent = max(0.0, (time.time() if now is None else now) - written)
    if not log:
        return f"step 0 of {steps:,}: no step is logged yet"
    last, first = log[-1], log[-RECENT:][0]
    done, spent = last["step"] - first["step"], last["seconds"] - first["seconds"]
    where = f"step {last['step']:,} of {steps:,}"
    if max(saved, last["step"]) >= steps:
        return f"done: all {steps:,} steps, after {duration(max(seconds, last['seconds']))} of training"
    each = spent / done if done > 0 else last["seconds"] / last["step"]
    if silent > max(SILENCE, LATE * LOG_EVERY * each):
        return f"at rest: {where}, {duration(last['seconds'])} of training; no news for {duration(silent)}"
    left = duration(each * (steps - last["step"]) - silent)
    collapsed = "; the generator has collapsed" if variety.collapse(log) else ""
    return f"training: {where}, {images / max(each, 1e-9):.0f} images/s, {left} left{collapsed}"
