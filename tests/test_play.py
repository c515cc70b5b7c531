"""minisagan play: the images are those of minisagan sample, the maps those of minisagan attention."""

import base64
import json
import shutil
import socket
import threading
import time
from dataclasses import replace

import command_line
import imageio.v3 as iio
import numpy as np
import pages
import pytest
from command_line import SMALL, minisagan, refused
from pages import ask, serving, until

from minisagan import data
from minisagan.errors import UsageError
from minisagan.look import attention_maps, play
from minisagan.look.interpolation import slerp
from minisagan.run import checkpoint
from minisagan.run import folder as runs
from minisagan.sampling import generate, latents

apart, run, photos = command_line.apart, pages.run, command_line.photos  # fixtures
pytestmark = pytest.mark.usefixtures("apart")

ASKED = {"network": "generator", "step": 3, "label": None, "seed": 0, "to": 1, "t": 0, "truncation": None, "gamma": 1}


def decoded(uri):
    return np.atleast_3d(iio.imread(base64.b64decode(uri.removeprefix("data:image/png;base64,")), extension=".png"))


def images(page, **asked):
    status, _, came = ask(page, "POST", "/draw", ASKED | asked)
    assert status == 200, came
    return np.stack([decoded(uri) for uri in came["images"]])


@pytest.fixture(scope="module")
def page(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DRAWN", command_line.FEW)
        with serving(play.Play(run).routes()) as page:
            yield page


def test_the_images_are_those_of_sample(page, run):
    for options, asked in (
        (["--seed", 5], {"seed": 5}),
        (["--classes", "3", "--truncation", 0.5], {"label": 3, "truncation": 0.5}),
    ):
        minisagan("sample", run, "--count", 16, "-o", "x.npz", *options)
        np.testing.assert_array_equal(images(page, **asked)[..., 0], np.load("x.npz")["images"])


def test_on_the_way_the_latents_are_on_the_arc(page, run):
    G, *_ = runs.load_generator(run)
    a, b = latents(G, 16, 2), latents(G, 16, 3)
    z = np.concatenate([slerp(p, q, [0.25]) for p, q in zip(a, b, strict=True)]).astype(np.float32)
    wanted = data.to_uint8(generate(G, z, np.arange(16) % 10), 28)
    np.testing.assert_array_equal(images(page, seed=2, to=3, t=0.25), wanted)
    np.testing.assert_array_equal(images(page, seed=2, to=3, t=1), images(page, seed=3))


def test_gamma_is_turned_and_turned_back(page, run):
    G, *_ = runs.load_generator(run)
    z, labels, whole = latents(G, 16, 0), np.arange(16) % 10, images(page)
    with attention_maps.without(G):
        np.testing.assert_array_equal(images(page, gamma=0), data.to_uint8(generate(G, z, labels), 28))
    gammas = [ask(page, "POST", "/draw", ASKED | {"gamma": k})[2]["gamma"] for k in (0, 1, 2)]
    np.testing.assert_allclose(gammas, float(G.attention.gamma.data) * np.arange(3), rtol=1e-6)
    np.testing.assert_array_equal(images(page), whole)
    assert (images(page, gamma=0) != whole).any() and (images(page, gamma=4) != whole).any()


def test_the_map_is_that_of_the_attention_and_its_numbers_with_it(page, run):
    G, *_ = runs.load_generator(run)
    outputs, x, _ = attention_maps.look(G, latents(G, 16, 0), np.arange(16) % 10)
    status, _, came = ask(page, "POST", "/look", ASKED | {"image": 4, "point": [9, 20]})
    assert status == 200
    weights = attention_maps.maps(G.attention, x[4:5], np.array([[[9, 20]]]), 32, 28)[0, 0]  # (8, 8)
    row, column, largest = came["greatest"][0]
    assert largest == pytest.approx(weights.max()) and came["keys"] == 64 and came["uniform"] == 1 / 64
    y, x_at = np.unravel_index(weights.argmax(), weights.shape)
    assert (row, column) == (4 * y + 1.5 - 2, 4 * x_at + 1.5 - 2)  # a cell of 4x4 pixels; 2 of the 32 are the margin
    assert came["entropy"] == pytest.approx(attention_maps.entropy(weights.reshape(1, -1))[0], abs=1e-5)
    big = data.to_uint8(outputs[4:5], 32)[0].repeat(12, 0).repeat(12, 1)
    np.testing.assert_array_equal(decoded(came["picture"]), attention_maps.over(big, weights, 336))


def test_the_discriminator_is_shown_real_images(page, run):
    D, config, about, _ = runs.load_discriminator(run)
    dataset = runs.load_data(config, about, run)
    x, labels = attention_maps.real_images(dataset, 16, [7], 3)
    asked = ASKED | {"network": "discriminator", "label": 7, "seed": 3}
    _, _, came = ask(page, "POST", "/draw", asked)
    np.testing.assert_array_equal([decoded(uri) for uri in came["images"]], data.to_uint8(x, 28))
    np.testing.assert_allclose(came["scores"], attention_maps.look(D, x, labels)[0], rtol=1e-5)
    assert came["names"] == ["7"] * 16
    assert ask(page, "POST", "/look", asked | {"image": 0, "point": [0, 27]})[0] == 200


def test_two_steps_of_the_run_are_two_networks(page, run):
    facts = ask(page, "GET", "/facts")[2]
    assert facts["steps"] == [1, 2, 3] and facts["step"] == 3 and facts["classes"] == list("0123456789")
    assert (images(page, step=1) != images(page, step=3)).any()
    minisagan("sample", run / "checkpoints" / "step-00000001.safetensors", "--count", 16, "-o", "x.npz")
    np.testing.assert_array_equal(images(page, step=1)[..., 0], np.load("x.npz")["images"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": 99}, {"label": -1}, {"label": 1.0}, {"label": "3"}, {"label": [1]}, {"step": 77}, {"step": None},
        {"seed": -1}, {"seed": 2**60}, {"seed": 0.5}, {"t": 1.01}, {"t": "0"}, {"truncation": 0.01}, {"gamma": 1e9},
        {"truncation": 1e300}, {"network": "classifier"}, {"network": []}, {"z": [0.1] * 128}, {"gamma": True},
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_one_line(page, wrong):
    status, _, came = ask(page, "POST", "/draw", ASKED | wrong)
    assert status == 400 and came.keys() == {"error"} and "\n" not in came["error"]


def test_of_requests_whose_senders_went_away_only_a_few_wait(run, monkeypatch):
    shown, entered, release = play.Play(run), threading.Event(), threading.Event()
    drawn, full = [], (500, {"error": "8 requests are waiting already: ask again later"})

    def slow(asked, *_):
        drawn.append(asked.seed)
        entered.set()
        release.wait(60)
        raise UsageError("drawn")

    monkeypatch.setattr(shown, "_seen", slow)
    with serving(shown.routes()) as page:
        body = json.dumps(ASKED).encode()
        head = b"POST /draw HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        for _ in range(play.WAITING):
            with socket.create_connection(("127.0.0.1", page.server_port)) as connection:
                connection.sendall(head + body)
        assert entered.wait(60)
        until(lambda: not free(shown.room))
        assert ask(page, "POST", "/draw", ASKED)[::2] == full
        release.set()
        while ask(page, "POST", "/draw", ASKED | {"seed": 1})[0] == 500:
            time.sleep(0.01)
        until(lambda: drawn.count(0) == play.WAITING)
    assert drawn.count(1) == 1 and len(drawn) == play.WAITING + 1


def free(room):
    """Whether the semaphore has a place."""
    return room.acquire(blocking=False) and (room.release() or True)


def test_a_point_outside_an_image_that_is_none_and_a_latent_of_a_million_numbers(page):
    for wrong in ({"point": [28, 0]}, {"point": [-1, 0]}, {"point": [0.5, 0]}, {"point": [0]}, {"point": "ab"},
                  {"image": 16}, {"image": None}, {"point": {"0": 1, "1": 2}}):  # fmt: skip
        assert ask(page, "POST", "/look", ASKED | {"image": 0, "point": [0, 0]} | wrong)[0] == 400
    assert ask(page, "POST", "/draw", ASKED | {"z": [0.5] * 1_000_000})[0] == 400
    assert ask(page, "POST", "/draw", str(ASKED | {"t": float("nan")}).replace("'", '"').encode())[0] == 400
    assert ask(page, "POST", "/draw", {})[0] == 400
    assert len(images(page)) == 16


def test_d_on_the_images_of_an_array_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(16) % 2)
    minisagan("train", *SMALL, "--dataset", tmp_path / "x.npz", "--steps", 1, "--out", tmp_path / "run")
    with serving(play.Play(tmp_path / "run").routes()) as page:
        assert ask(page, "GET", "/facts")[2]["no_data"] == ""
        asked = ASKED | {"step": 1, "network": "discriminator"}
        assert ask(page, "POST", "/look", asked | {"image": 1, "point": [0, 0]})[0] == 200
        (tmp_path / "x.npz").rename(tmp_path / "y.npz")
        assert ask(page, "GET", "/facts")[2]["no_data"] == f"{tmp_path / 'x.npz'} is not there"


def test_a_run_in_colour_without_classes_and_one_without_attention(photos):
    with serving(play.Play(photos / "run", photos / "data").routes()) as page:
        assert ask(page, "GET", "/facts")[2]["classes"] == []
        assert images(page, step=1).shape == (16, 32, 32, 3)
        assert ask(page, "POST", "/draw", ASKED | {"step": 1, "label": 0})[0] == 400
        real = ASKED | {"step": 1, "network": "discriminator"}
        assert ask(page, "POST", "/look", real | {"image": 15, "point": [31, 31]})[0] == 200
        shutil.move(photos / "pets", photos / "away")
        try:
            assert "is not there" in ask(page, "GET", "/facts")[2]["no_data"]
        finally:
            shutil.move(photos / "away", photos / "pets")
    minisagan("train", *SMALL, "--steps", 1, "--attention", "none", "--out", "bare")
    with serving(play.Play("bare").routes()) as page:
        assert ask(page, "GET", "/facts")[2]["attention"] is None
        assert images(page, step=1).shape == (16, 28, 28, 1)
        _, _, came = ask(page, "POST", "/look", ASKED | {"step": 1, "image": 0, "point": [0, 0]})
        assert "without attention" in came["error"]


def test_a_checkpoint_alone_and_one_that_went_away(run, tmp_path):
    lone = shutil.copy(run / "checkpoints" / "step-00000002.safetensors", tmp_path / "lone.safetensors")
    with serving(play.Play(lone).routes()) as page:
        assert ask(page, "GET", "/facts")[2]["steps"] == [2]
        lone.unlink()
        assert "no such checkpoint now" in ask(page, "POST", "/draw", ASKED | {"step": 2})[2]["error"]


def test_another_run_in_the_folder_is_not_shown_as_the_first(run, photos, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    with serving(play.Play(folder).routes()) as page:
        assert len(images(page)) == 16
        shutil.rmtree(folder)
        shutil.copytree(photos / "run", folder)
        for step in (0, 1):
            status, _, came = ask(page, "POST", "/draw", ASKED | {"step": step})
            assert (status, came["error"]) == (400, "another run is in this folder now: start play anew")


def test_data_that_would_be_downloaded_is_not_at_hand(run, tmp_path):
    shown = play.Play(run)
    shown.config = replace(shown.config, dataset="cifar10")
    assert "cifar10 is not in" in shown._no_data()
    places = ("mnist", "MNIST/raw"), ("kmnist", "."), ("fashion-mnist", "fashion-mnist"), ("emnist-letters", "emnist")
    for name, place in places:
        shown.config, shown.data_dir = replace(shown.config, dataset=name), tmp_path / name
        (shown.data_dir / place).mkdir(parents=True)
        assert f"{name} is not in" in shown._no_data()
        prefix = f"{name}-" if name.startswith("emnist") else ""
        (shown.data_dir / place / f"{prefix}train-images-idx3-ubyte").touch()
        assert shown._no_data() == ""


def test_what_cannot_be_played_with_is_one_line(run, tmp_path):
    assert "nowhere: no such run folder" in refused("play", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is it a run folder?" in refused("play", "empty", code=3)
    (tmp_path / "x.safetensors").write_bytes(b"no checkpoint")
    assert "cannot use this checkpoint" in refused("play", "x.safetensors", code=3)
    tensors, about = checkpoint.load(run / "checkpoints" / "step-00000003.safetensors")
    config = json.dumps(json.loads(about["config"]) | {"tempo": 1})
    checkpoint.save(tmp_path / "old.safetensors", tensors, about | {"config": config})
    assert "this version of minisagan doesn't know tempo" in refused("play", "old.safetensors", code=3)
    assert "'--port'" in refused("play", run, "--port", 0)
