"""How far a training is: one line, written over and over; where stderr is no terminal, a line now and then."""

import contextlib
import math
import sys
import time

from minisagan.look.words import duration
from minisagan.stderr import columns

EVERY = (0.1, 5.0)  # seconds between two lines: on a terminal, elsewhere


class Progress:
    """Shows the records of `run` on stderr until it is closed; `seconds`: how long the training may still take."""

    def __init__(self, run, seconds=math.inf):
        self.training = run.training
        self.first, self.start, self.seconds = run.training.step, time.monotonic(), seconds
        self.terminal = sys.stderr.isatty()
        self.variety, self.gamma = "", ""
        self.shown, self.due, self.width, self.record = None, 0.0, 0, None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Shows the last record, if it was not yet, and leaves the cursor on a line of its own."""
        if self.record and self.shown != self.record["step"]:
            self._show()
        if self.terminal and self.shown is not None:
            self._write("\n")

    def update(self, record):
        """Take note of the step's record, and show it if it is time."""
        self.record = record
        if "variety" in record:
            self.variety = f"  variety {record['variety']:.2f}"
        if "gamma_g" in record:
            self.gamma = f"  gamma {record['gamma_g']:+.4f}"
        if time.monotonic() >= self.due:
            self._show()

    def note(self, text):
        """A line of its own, which stays."""
        if self.terminal and self.shown is not None:
            self._write("\n")
        self._write(f"note: {text}\n")
        self.width = 0

    def _show(self):
        self.shown, self.due = self.record["step"], time.monotonic() + EVERY[not self.terminal]
        line = self.line(self.record, time.monotonic() - self.start)
        if self.terminal:
            line = line[: columns()]
            line, self.width = "\r" + line.ljust(self.width), len(line)
        else:
            line += "\n"
        self._write(line)

    def line(self, record, elapsed):
        """The line for a record, `elapsed` seconds after the first step began."""
        config, r = self.training.config, record
        each = elapsed / (r["step"] - self.first)
        left = min(each * (config.steps - r["step"]), self.seconds - elapsed)
        images = config.batch_size * config.d_steps / max(each, 1e-9)
        return (  # in this order, because a narrow terminal cuts off the end
            f"step {r['step']}/{config.steps}  {duration(left)} left  {images:.0f} images/s  "
            f"loss D {r['loss_d']:.3f} G {r['loss_g']:+.3f}  D(real) {r['d_real']:+.2f} D(fake) {r['d_fake']:+.2f}"
            f"{self.variety}{self.gamma}"
        )

    def _write(self, text):
        with contextlib.suppress(OSError):  # who reads stderr may go away, the training goes on
            sys.stderr.write(text)
            sys.stderr.flush()
