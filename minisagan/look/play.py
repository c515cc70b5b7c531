"""A page to touch a run's networks: draw with the generator, turn gamma, and see where a point looks.

A request says all of what it asks (`Asked`), so the server remembers nothing but what it computed last. The generator's
images are those of `minisagan sample`: of class k at seed s, the first ones of --classes k --seed s; at 128 and 256
pixels to rounding, as there are fewer at a time.
"""

import threading
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisagan import data
from minisagan.errors import Fault, UsageError
from minisagan.look import attention_maps, pictures, server
from minisagan.look.interpolation import slerp
from minisagan.run import checkpoint
from minisagan.run import folder as runs
from minisagan.sampling import BATCH, generate, in_turn, latents

COUNTS = {32: BATCH, 64: BATCH, 128: 8, 256: 4}  # images at a time, by the networks' size
WIDE = 320  # the least width of the picture with a map, in pixels
GREATEST = 5  # weights that are told with a map
LOADED = 4  # networks, and answers, that are kept: G and D of two steps, which a page may show in turn
WAITING = 8  # requests at a time: a page has one, but those whose sender went away are computed, too


class Asked(NamedTuple):
    """What a request asks for: numbers within bounds, of the run's own steps and classes.

    label: one class, or None for all in turn. The generator's latents are `seed`'s, or at t > 0 lie so far on the arc
    to those of the seed `to`; truncation None is none. The discriminator is given real images in an order of `seed`.
    gamma: the factor to its own value.
    """

    network: str
    step: int
    label: int | None
    seed: int
    to: int
    t: float
    truncation: float | None
    gamma: float


class Play:
    """What the page asks of the run or checkpoint at `run`; its errors are those of `runs.load_generator`."""

    def __init__(self, run, data_dir=None):
        self.run, self.data_dir = run, data_dir
        file = runs.find(run)
        self._load, self._seen, self._dataset = lru_cache(LOADED)(_load), lru_cache(LOADED)(self._see), None
        self.config, self.about = self._load("generator", file, file.stat().st_mtime_ns)[1:]
        self.step, self.files = _step(file), {_step(file): file}
        self.folder = runs.folder_of(file)
        self.arch, self.size = self.config.architecture, self.about["image_size"]
        self.classes = self.about["classes"] if self.arch.classes else []
        self.lock, self.room = threading.Lock(), threading.BoundedSemaphore(WAITING)

    def routes(self):
        files = {"/": "play.html", "/play.js": "play.js", "/report.css": "report.css", "/play.css": "play.css"}
        return {
            **{f"GET {path}": server.asset(name) for path, name in files.items()},
            "GET /facts": self.facts,
            "POST /draw": self.draw,
            "POST /look": self.look,
        }

    def facts(self):
        """What can be chosen on the page."""
        return server.as_json({
            "run": Path(self.run).resolve().name, "steps": sorted(self._steps()), "step": self.step,
            "classes": self.classes,
            "size": self.size, "attention": self.arch.attention,
            "cell": self.arch.size // (self.arch.attention or 1),
            "no_data": self._no_data(),
        })  # fmt: skip

    def draw(self, body):
        """The images that are asked for, with the discriminator's scores of real ones."""
        with self._turn():
            asked = self._asked(body)
            images, _, labels, scores, gamma = self._seen(asked, *self._file(asked.step))
            return server.as_json({
                "images": [_uri(image) for image in data.crop(images, self.size)],
                "names": [self.classes[k] for k in labels] if labels is not None else None,
                "scores": scores, "gamma": gamma,
            })  # fmt: skip

    def look(self, body):
        """The attention map of a point {"image": number, "point": [y, x]} of the images that are asked for."""
        with self._turn():
            if not self.arch.attention:
                raise UsageError("this run was trained without attention: there is no map")
            point = body.pop("point", None)
            n = server.number(body.pop("image", None), "image", 0, COUNTS[self.arch.size] - 1, whole=True)
            if not isinstance(point, list) or len(point) != 2:
                raise UsageError("point must be [y, x], two numbers of pixels")
            y, x = (server.number(p, "a point's place", 0, self.size - 1, whole=True) for p in point)
            asked = self._asked(body)
            images, features, *_ = self._seen(asked, *self._file(asked.step))
            layer = self._network(asked.network, *self._file(asked.step)).attention
            points = np.array([[[y, x]]])
            weights = attention_maps.maps(layer, features[n : n + 1], points, self.arch.size, self.size)[0, 0]  # (h, w)
            return server.as_json({
                "picture": _uri(self._over(images[n], weights)),
                **self._told(weights, y, x),
            })  # fmt: skip

    @contextmanager
    def _turn(self):
        """Inside, nothing else is computed; Fault if too many wait for that already."""
        if not self.room.acquire(blocking=False):
            raise Fault(f"{WAITING} requests are waiting already: ask again later")
        try:
            with self.lock:
                yield
        finally:
            self.room.release()

    def _over(self, image, weights):
        scale = max(1, -(-WIDE // self.size))
        return attention_maps.over(image.repeat(scale, 0).repeat(scale, 1), weights, self.size * scale)

    def _told(self, weights, y, x):
        """The numbers of a map (h, w) as seen from the pixel (y, x) of the image."""
        row = weights.reshape(1, -1)
        keys, margin = row.size, (self.arch.size - self.size) // 2
        places = attention_maps.places(len(weights), self.arch.size) - margin - 0.5  # in pixels of the image
        far = np.linalg.norm(places - (y, x), axis=1)
        greatest = np.argsort(-row[0], kind="stable")[:GREATEST]
        return {
            "keys": keys, "uniform": 1 / keys, "entropy": float(attention_maps.entropy(row)[0]),
            "entropy_uniform": float(np.log2(keys)), "distance": float(row[0] @ far),
            "greatest": [[*places[k].tolist(), float(row[0, k])] for k in greatest],
        }  # fmt: skip

    def _asked(self, body):
        """The body of a request as Asked; UsageError for what is missing, unknown, or out of bounds."""
        if body.keys() != set(Asked._fields):
            raise UsageError(f"a request has {', '.join(Asked._fields)}, not {', '.join(map(str, body))[:100]}")
        number, asked = server.number, Asked(**body)
        if asked.network not in ("generator", "discriminator"):
            raise UsageError("network must be generator or discriminator")
        number(asked.step, "step", 0, 2**53, whole=True)
        if asked.label is not None:
            if not self.classes:
                raise UsageError("this run was trained without classes: label must be null")
            number(asked.label, "label", 0, len(self.classes) - 1, whole=True)
        for name in ("seed", "to"):
            number(getattr(asked, name), name, 0, 2**53, whole=True)
        number(asked.t, "t", 0, 1)
        if asked.truncation is not None:
            number(asked.truncation, "truncation", 0.1, 10)
        number(asked.gamma, "gamma", -10, 10)
        return asked

    def _steps(self):
        """Step -> checkpoint, of all that the run has now."""
        return self.files | (checkpoint.of_steps(self.folder / "checkpoints") if self.folder else {})

    def _file(self, step):
        """The step's checkpoint, and when it was written; UsageError if it is gone."""
        file = self._steps().get(step)
        try:
            return file, file.stat().st_mtime_ns
        except (AttributeError, OSError):
            raise UsageError(f"step {step}: the run has no such checkpoint now") from None

    def _network(self, *which):
        """A network of this run; UsageError if another run has taken its place."""
        network, config, about = self._load(*which)
        if (config.architecture, about["classes"]) != (self.arch, self.about["classes"]):
            raise UsageError("another run is in this folder now: start play anew")
        return network

    def _see(self, asked, file, written):
        """(images uint8 (N, S, S, C), attention's x, labels, scores, gamma), or None for what there is not."""
        network, count = self._network(asked.network, file, written), COUNTS[self.arch.size]
        choice = None if not self.classes else range(len(self.classes)) if asked.label is None else [asked.label]
        if asked.network == "generator":
            inputs = self._latents(network, count, asked), in_turn(choice, count)
        else:
            inputs = attention_maps.real_images(self._data(), count, choice, asked.seed)
        features = gamma = None
        if self.arch.attention:
            with attention_maps.gamma_times(network, asked.gamma) as gamma:
                outputs, features, _ = attention_maps.look(network, *inputs)
        else:
            outputs = generate(network, *inputs)
        if asked.network == "generator":
            return data.to_uint8(outputs, self.arch.size), features, inputs[1], None, gamma
        return data.to_uint8(inputs[0], self.arch.size), features, inputs[1], outputs.tolist(), gamma

    def _latents(self, network, count, asked):
        z = latents(network, count, asked.seed, asked.truncation)
        if not asked.t:
            return z
        ends = latents(network, count, asked.to, asked.truncation)
        return np.concatenate([slerp(a, b, [asked.t]) for a, b in zip(z, ends, strict=True)]).astype(z.dtype)

    def _no_data(self):
        """Why there are no real images to show, or ""; nothing is downloaded for them."""
        name, where = self.config.dataset, data.data_folder(self.data_dir)
        if data.is_path(name):
            return "" if Path(name).exists() else f"{name} is not there"
        there = name == "drawn-digits" or where and data.find(name, where)
        return "" if there else f"{name} is not in {where or 'a data folder'}: --data-dir names another folder"

    def _data(self):
        if reason := self._no_data():
            raise UsageError(reason)
        if self._dataset is None:
            self._dataset = runs.load_data(self.config, self.about, self.run, self.data_dir)
        return self._dataset


def _load(kind, file, written):
    """The network, the Config and the data of a checkpoint that was written at that time."""
    return (runs.load_generator if kind == "generator" else runs.load_discriminator)(file)[:3]


def _step(file):
    return int(checkpoint.read_metadata(file)["step"])


def _uri(image):
    return pictures.uri(pictures.png(image), "png")
