"""What the scripts of the claims share: runs spread over processes, a log that survives a stop, numbers over seeds.

A run is a dict of settings that determines it; its log is a dict of columns, one value for each measurement. A log
file has a line of JSON for each finished run, {"run": settings, "log": columns}: a script that is started again
makes only the runs that it lacks. CPU time is counted in seconds of one thread, the thread that a run has.
"""

import itertools
import json
import math
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import click
import numpy as np

from minisagan import cpu
from minisagan.look import pictures

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def command(function):
    """A click command of function(jobs, full, quick, out)."""
    options = (
        click.option("--jobs", type=click.IntRange(min=1), default=CORES, help="Runs at a time, a thread for each."),
        click.option("--full", is_flag=True, help="More settings than the core's: hours."),
        click.option("--quick", is_flag=True, help="A few steps of each, in seconds: does it all work?"),
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path(__file__).parent / "results",
            help="Folder of the log, the picture and the table.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    settings = {"help_option_names": ["-h", "--help"], "show_default": True}
    return click.command(context_settings=settings)(function)


class Clock:
    """CPU seconds of training alone: `with clock:` around what counts."""

    seconds = 0.0

    def __enter__(self):
        self.start = time.process_time()

    def __exit__(self, *_):
        self.seconds += time.process_time() - self.start


def carry_out(function, runs, path, jobs):
    """The logs function(**run) of all `runs`, in their order: [(run, log)]. Those that the file at `path` has are
    taken from there, the others made, `jobs` at a time, and added to it as they end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read(path)
    todo = [run for run in runs if _key(run) not in done]
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are in {path}", flush=True)
    spawn = multiprocessing.get_context("spawn")  # a fork would have lost the threads of minisagan.cpu
    start = time.monotonic()
    with path.open("a") as file, ProcessPoolExecutor(jobs, spawn, _one_thread) as pool:
        try:
            waiting = {pool.submit(function, **run): run for run in todo}
            for count, future in enumerate(as_completed(waiting), 1):
                run, log = waiting[future], future.result()
                file.write(json.dumps({"run": run, "log": log}, separators=(",", ":")) + "\n")
                file.flush()
                done[_key(run)] = log
                minutes = (time.monotonic() - start) / 60
                left = minutes / count * (len(todo) - count)
                settings = " ".join(f"{name}={value}" for name, value in run.items())
                print(f"{count}/{len(todo)}  {settings}: done; {minutes:.1f} min, about {left:.0f} to go", flush=True)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return [(run, done[_key(run)]) for run in runs]


def read(path):
    """The logs in a file, by the key of their runs. A line that a stop left unfinished is dropped from the file."""
    if not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    rows = map(json.loads, whole.splitlines())
    return {_key(row["run"]): row["log"] for row in rows}


def _key(run):
    return json.dumps(run, sort_keys=True)


def _one_thread():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's affair
    cpu.set_threads(1)


def budget(start, runs, jobs, measuring=0.1):
    """Print how long `runs` will take. start(**run) is a Training: a few steps of one for each setting are timed.

    `measuring` is the time of what is no training, as a share.
    """
    cpu.set_threads(1)
    seconds, timed = 0, {}
    for run in runs:
        setting = _key(run | {"seed": 0, "steps": 0})
        if setting not in timed:
            training, clock = start(**run), Clock()
            training.advance()
            with clock:
                for _ in range(3):
                    training.advance()
            timed[setting] = clock.seconds / 3
        seconds += run["steps"] * timed[setting] * (1 + measuring)
    jobs = min(jobs, CORES, len(runs))
    print(
        f"{len(runs)} runs, {sum(run['steps'] for run in runs):,} steps: about {seconds / 60:.0f} CPU-minutes, "
        f"{seconds / 60 / jobs:.0f} minutes on {jobs} core{'s' if jobs > 1 else ''}",
        flush=True,
    )


def chosen(logs, **settings):
    """The logs of those runs that have these settings."""
    return [log for run, log in logs if all(run[name] == value for name, value in settings.items())]


def series(label, logs, x, y, log=False):
    """A series for plot.Panel: the mean of column y, or of its log10, over logs, with a band of one standard
    deviation each way."""
    xs, ys = (np.array([columns[name] for columns in logs], float) for name in (x, y))  # (seeds, rows); None is NaN
    ys = np.log10(np.where(ys > 0, ys, np.nan)) if log else ys  # 0 leaves a gap
    spread = ys.std(0, ddof=1) if len(ys) > 1 else np.zeros(ys.shape[1])
    return label, xs.mean(0), ys.mean(0), ys.mean(0) - spread, ys.mean(0) + spread


def mean_std(values, digits=2):
    """The mean and the standard deviation of a sample, as text: mean_std([1, 3]) is "2.00 ± 1.41"."""
    values = np.array(values, float)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def permutation_p(a, b):
    """How often a random split of all values has means at least as far apart as a and b: a two-sided p-value.

    Exact: all splits are tried. Of five values each there are 252, so that the least p is 2 / 252 = 0.008.
    """
    values = np.array([*a, *b], float)
    found = []
    for split in itertools.combinations(range(len(values)), len(a)):
        inside = np.isin(np.arange(len(values)), split)
        found.append(abs(values[inside].mean() - values[~inside].mean()))
    return float(np.mean(np.array(found) >= abs(np.mean(a) - np.mean(b)) - 1e-12))


def table(header, rows):
    """Columns of text, each as wide as its widest cell; numbers stand right."""
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in cells]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def publish(path, text, picture):
    """Write PATH.txt and PATH.png, and print."""
    path.with_suffix(".txt").write_text(text, encoding="utf-8")
    pictures.write_png(path.with_suffix(".png"), picture)
    print(f"\n{text}\n{path}.txt, {path}.png, and the raw log {path}.jsonl")


def rounded(value, digits=4):
    """To so many significant digits, for a short log; None for what is not finite, as JSON has no NaN."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
