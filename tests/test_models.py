"""The networks as the specification has them: parameter counts, channel widths, sizes, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest

from minisagan import data
from minisagan.autograd import Tensor, no_tape
from minisagan.beyond.pack import packed
from minisagan.config import Architecture, Config, recipe
from minisagan.errors import UsageError
from minisagan.init import Init
from minisagan.models import Discriminator, Generator
from minisagan.module import Module
from minisagan.nn import BatchNorm, Conv, SelfAttention
from minisagan.optim import Adam
from minisagan.run import checkpoint
from minisagan.sampling import draw
from minisagan.train import descend


class Shapes(Init):
    """Weights of the right shape and no memory to speak of."""

    def weight(self, shape):
        return Tensor(np.broadcast_to(np.float32(0), shape))

    def constant(self, shape, value):
        return Tensor(np.broadcast_to(np.float32(value), shape))


def count(network):
    return sum(p.data.size for p in network.parameters().values())


@pytest.mark.parametrize("level, g, d", [(32, 42_078_852, 39_463_618), (64, 42_017_412, 39_448_258)])
def test_the_networks_of_the_paper_have_the_released_codes_parameters(level, g, d):
    arch = Architecture(size=128, channels=3, width=64, classes=1000, attention=level)
    assert count(Generator(arch, Shapes(0))) == g and count(Discriminator(arch, Shapes(1))) == d


def test_the_channels_follow_one_rule():
    arch = Architecture(size=128, channels=3, width=64, classes=1000, attention=32)
    assert [arch.generator_width(r) for r in (4, 8, 16, 32, 64, 128)] == [1024, 1024, 512, 256, 128, 64]
    assert [arch.discriminator_width(r) for r in (64, 32, 16, 8, 4)] == [64, 128, 256, 512, 1024]


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_size_makes_images_and_scores_them(size, classes):
    arch = Architecture(size=size, channels=3, width=1, classes=classes, attention=None, latent=5)
    labels = np.array([2, 0]) if classes else None
    with no_tape():
        images = Generator(arch)(np.ones((2, 5), np.float32), labels).data
        scores = Discriminator(arch)(images, labels).data
    assert images.shape == (2, size, size, 3) and images.dtype == np.float32 and abs(images).max() < 1
    assert scores.shape == (2,) and np.isfinite(scores).all()


def test_a_pack_has_its_images_as_channels():
    x = np.random.default_rng(0).standard_normal((6, 32, 32, 2)).astype(np.float32)
    labels = np.array([2, 0, 2, 0, 2, 0])
    for found in (packed(x, labels, 3)[0], packed(Tensor(x), None, 3)[0].data):
        assert found.shape == (2, 32, 32, 6)
        for i in range(2):
            for k in range(3):
                np.testing.assert_array_equal(found[i, ..., 2 * k : 2 * k + 2], x[2 * k + i])
    assert packed(x, labels, 3)[1].tolist() == [2, 0] and packed(x, None, 3)[1] is None
    assert packed(x, labels, 1) == (x, labels)


def test_a_discriminator_of_packs_sees_an_image_by_itself_as_a_pack_of_equal_ones():
    D = Discriminator(Architecture(width=8, classes=3, pack=2)).eval()
    x, labels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 1)).astype(np.float32), np.array([2, 0])
    with no_tape():
        pair = D(packed(np.concatenate([x, x]), None, 2)[0], labels).data
        np.testing.assert_array_equal(D(x, labels).data, pair)
        assert (abs(D(packed(np.concatenate([x, x[::-1]]), None, 2)[0], labels).data - pair) > 1e-3).all()


def test_evaluation_is_the_same_twice_and_training_moves_u_and_the_statistics():
    G = Generator(Architecture(width=8, latent=4))
    z, labels = np.ones((2, 4), np.float32), np.array([1, 1])
    with no_tape():
        before = {name: b.copy() for name, b in G.buffers().items()}
        G(z, labels)
        assert all((before[name] != b).any() for name, b in G.buffers().items() if b.size > 1)
        G.eval()
        assert np.array_equal(G(z, labels).data, G(z, labels).data)


def test_each_layer_trains_or_rests_by_itself():
    D = Discriminator(Architecture(width=8, classes=0)).train()
    D.down8.eval()
    before = {name: u.copy() for name, u in D.buffers().items() if u.size > 1}
    D(np.ones((2, 32, 32, 1), np.float32))
    rested = {name for name, u in before.items() if np.array_equal(u, D.buffers()[name])}
    assert rested == {name for name in before if name.startswith("down8.")} and len(rested) == 3


def test_a_wrong_class_leaves_the_generator_as_it_was():
    G = Generator(Architecture(width=8, latent=4, classes=3))
    before = {name: x.copy() for name, x in G.state().items()}
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\)"):
        G(np.ones((2, 4), np.float32), np.array([0, 3]))
    assert all(np.array_equal(x, before[name]) for name, x in G.state().items())


def test_attention_that_can_not_be_is_refused():
    for more in ({"form": "Official"}, {"key": 17}, {"key": 0}):
        with pytest.raises(UsageError, match="self-attention is official or paper, key 1 to 16, not"):
            SelfAttention(Init(0), 16, **more)


@pytest.mark.parametrize(
    "width, key, inside", [(16, None, (8, 8)), (16, 8, (4, 2)), (16, 2, (16, 8)), (64, None, (16, 8))]
)
def test_query_and_key_are_as_wide_as_was_asked_for_and_left_to_us_at_least_8(width, key, inside):
    arch = Architecture(width=width, latent=4, attention_key=key)  # C = 2 width in G, width in D
    for network, channels in zip((Generator(arch), Discriminator(arch)), inside, strict=True):
        assert network.attention.query.w.shape[3] == network.attention.key.w.shape[3] == channels


def test_a_configuration_of_before_the_width_of_keys_was_a_choice_has_an_eighth():
    values = Config().to_dict()
    assert Config.from_dict(values).architecture.attention_key is None
    del values["architecture"]["attention_key"]
    assert Config.from_dict(values).architecture.attention_key == 8


@pytest.mark.parametrize("classes, labels, says", [
    (10, None, r"2 images of a network with 10 classes labels are \(2,\), not None"),
    (10, np.zeros(1, int), r"are \(2,\), not \(1,\)"),
    (10, np.zeros(2), "labels must be integers in .0, 10., not float64"),
    (0, np.zeros(2, int), r"with no classes labels are None, not \(2,\)"),
])  # fmt: skip
def test_labels_that_are_not_one_for_each_image_are_refused(classes, labels, says):
    arch = Architecture(width=8, classes=classes)
    with pytest.raises(ValueError, match=says):
        Generator(arch)(np.zeros((2, arch.latent), np.float32), labels)
    with pytest.raises(ValueError, match=says):
        Discriminator(arch)(np.zeros((2, 32, 32, 1), np.float32), labels)
    with pytest.raises(ValueError, match="one image or more, not none"):
        Generator(arch)(np.zeros((0, arch.latent), np.float32), np.zeros(0, int) if classes else None)


def test_the_gates_of_attention_start_closed():
    arch = Architecture(width=8, latent=4)
    assert float(Generator(arch).attention.gamma.data) == float(Discriminator(arch).attention.gamma.data) == 0


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"size": 48}, "image size must be one of 32, 64, 128, 256, not 48"),
        ({"channels": 2}, "images have 1 or 3 channels, not 2"),
        ({"attention": 32}, "attention at 32: at 32x32 it is at 8, 16 or none"),
        ({"width": 4}, "attention at 16 needs 8 channels there; with width 4 it has 4: take a width of 8 or more"),
        ({"pack": 9}, "D can see 1 to 8 images at once, not 9"),
        ({"attention_form": "other"}, "attention form must be official or paper"),
        ({"attention_key": 17}, "attention key C/k: of C = 16 channels k can be 1 to 16, not 17"),
        ({"spectral_norm": "G"}, "spectral norm must be both, discriminator or none"),
    ],
)
def test_networks_that_can_not_be_are_refused(wrong, says):
    with pytest.raises(UsageError, match=says):
        Architecture(**wrong)


def test_a_folder_that_bears_a_recipes_name_is_a_folder_still():
    photos = data.Dataset("digits", np.zeros((4, 64, 64, 3), np.uint8), np.zeros(4, int), ("all",), {})
    assert recipe(photos) == replace(recipe(replace(photos, name="my photos")), dataset="digits")
    grey = data.Dataset("folder", np.zeros((4, 28, 28, 1), np.uint8), np.zeros(4, int), ("all",), {})
    assert recipe(grey).lr_d == 2.4e-3 and recipe(photos).lr_d == 1.6e-3


class Heads(Module):
    """Own attention: several heads in a list, each over all channels; the gate as in eq. 3."""

    def __init__(self, init, channels):
        self.heads = [Conv(init, channels, channels, kernel=1) for _ in range(2)]
        self.norms = (BatchNorm(init, channels), BatchNorm(init, channels))
        self.none, self.gamma = [], init.constant((), 0.5)

    def __call__(self, x):
        for head, norm in zip(self.heads, self.norms, strict=True):
            x = x + self.gamma * norm(head(x))
        return x


def test_modules_in_lists_are_trained_saved_and_rest(tmp_path):
    def made(seed):
        network = Discriminator(Architecture(width=8, classes=0), Init(seed))
        network.attention = Heads(Init(seed + 1), 8)
        return network

    D = made(0)
    ours = {name: x for name, x in D.state().items() if name.startswith("attention.")}
    names = [f"heads.{k}.{name}" for k in (0, 1) for name in ("w", "b", "u")]
    names += [f"norms.{k}.{name}" for k in (0, 1) for name in ("gain", "bias", "mean", "var")]
    assert set(ours) == {f"attention.{name}" for name in [*names, "gamma"]}
    adam, before = Adam(D.parameters(), 1e-2), {name: x.copy() for name, x in D.state().items()}
    x = np.random.default_rng(0).standard_normal((4, 32, 32, 1)).astype(np.float32)
    descend(D(x).mean(), D, adam)
    moved = [name for name in names if (D.state()[f"attention.{name}"] != before[f"attention.{name}"]).any()]
    assert set(names) - set(moved) <= {"heads.0.b", "heads.1.b"}  # before a batch norm they have no gradient
    one, two = D.eval()(x).data, D(x).data
    np.testing.assert_array_equal(one, two)
    checkpoint.save(tmp_path / "own.safetensors", D.state(), {})
    again = made(5)
    checkpoint.match(checkpoint.load(tmp_path / "own.safetensors")[0], again.state())
    np.testing.assert_array_equal(again.eval()(x).data, one)


def test_attention_of_ones_own_may_use_gamma_as_eq_3_does():
    class Plain(SelfAttention):
        def __call__(self, x):
            return x + self.gamma * self.output(self.mixed(x))

    x, gradients = np.random.default_rng(0).standard_normal((4, 32, 32, 1)), []
    for kind in (SelfAttention, Plain):
        D = Discriminator(Architecture(width=8, classes=0), Init(0, dtype=np.float64))
        D.attention = kind(Init(1, dtype=np.float64), 8)
        D.attention.gamma.data[...] = 0.5
        adam = Adam(D.parameters(), 0.0)
        descend(D(x).mean(), D, adam)
        gradients.append(adam.g.copy())
    np.testing.assert_allclose(*gradients, rtol=1e-9, atol=1e-12)
    assert abs(gradients[0]).max() > 0


def test_descend_says_which_networks_it_is_for():
    own = Heads(Init(0), 8)
    loss = own(Tensor(np.ones((1, 4, 4, 8), np.float32))).sum()
    with pytest.raises(ValueError, match="descend is for networks that are called inside .*; take grad.. for Heads"):
        descend(loss, own, Adam(own.parameters(), 1e-3))


def test_images_that_are_no_bytes_are_refused():
    with pytest.raises(ValueError, match="floats: images are uint8, from 0 to 255, not float32"):
        data.Dataset("floats", np.zeros((4, 32, 32, 1), np.float32), np.zeros(4, int), ("all",), {})


@pytest.mark.parametrize(
    "shape, labels, says",
    [
        ((4, 28, 28), [0, 1, 1, 0], r"images are \(N, H, H, 1 or 3\), H up to 256, not \(4, 28, 28\)"),
        ((4, 28, 30, 1), [0, 1, 1, 0], r"not \(4, 28, 30, 1\)"),
        ((4, 28, 28, 4), [0, 1, 1, 0], r"not \(4, 28, 28, 4\)"),
        ((1, 512, 512, 1), [0], r"not \(1, 512, 512, 1\)"),
        ((4, 28, 28, 1), [0, 1, 1], "one for each of 4 images"),
        ((4, 28, 28, 1), None, r"labels are integers \(N,\)"),
        ((4, 28, 28, 1), [0.0, 1, 1, 0], r"labels are integers \(N,\)"),
        ((4, 28, 28, 1), [0, 1, 2, 0], "labels of 2 classes are 0 to 1, not 0 to 2"),
        ((4, 28, 28, 1), [0, 1, -1, 0], "labels of 2 classes are 0 to 1, not -1 to 1"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(shape, labels, says):
    made = lambda labels: data.Dataset("mine", np.zeros(shape, np.uint8), labels, ("cat", "dog"))
    with pytest.raises(ValueError, match=f"mine: .*{says}"):
        made(None if labels is None else np.array(labels))


def test_small_photos_have_the_recipe_of_photos():
    small = data.Dataset("my photos", np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, int), ("all",))
    assert recipe(small).lr_d == 1.6e-3 and recipe(small).flip and recipe(small).architecture.attention == 16


def test_the_recipe_of_photos():
    made = recipe(data.Dataset("mine", np.zeros((4, 64, 64, 3), np.uint8), np.zeros(4, int), ("all",)))
    assert (made.steps, made.fall, made.flip) == (20_000, 0.5, True)
    assert (made.architecture.width, made.architecture.attention) == (32, 32)


def test_data_of_one_class_are_trained_on_without_classes():
    one = data.Dataset("mine", np.zeros((4, 64, 64, 3), np.uint8), np.zeros(4, int), ("all",))
    assert recipe(one).architecture.classes == 0
    two = replace(one, classes=("a", "b"))
    assert recipe(two).architecture.classes == 2 and recipe(two, conditional=False).architecture.classes == 0


def test_a_pack_has_the_class_of_its_images():
    x, labels = np.arange(6.0)[:, None, None, None] * np.ones((1, 2, 2, 1)), np.array([4, 7, 5, 4, 7, 5])
    y, of_packs = packed(x, labels, 2)
    assert y[:, 0, 0].tolist() == [[0, 3], [1, 4], [2, 5]] and of_packs.tolist() == [4, 7, 5]


def test_an_error_in_a_network_leaves_none_of_its_quotients(monkeypatch):
    G = Generator(Architecture(width=8, classes=0)).eval()
    monkeypatch.setattr(type(G.norm), "__call__", lambda *given: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        G(np.zeros((1, 128), np.float32))
    before = G.output.weight().data.copy()
    G.output.w.data[0] += 1
    assert not np.array_equal(G.output.weight().data, before)


def test_a_norm_by_itself_has_the_rows_of_its_own_labels():
    G = Generator(Architecture(width=8, classes=3)).eval()
    norm, x = G.up8.norm1, np.random.default_rng(0).standard_normal((1, 4, 4, 32)).astype(np.float32)
    norm.bias.data[...] = np.arange(3)[:, None]
    wanted = norm(Tensor(x), np.array([2])).data
    G(np.zeros((1, 128), np.float32), np.array([0]))
    np.testing.assert_array_equal(norm(Tensor(x), np.array([2])).data, wanted)


def test_no_class_at_all_can_not_be_drawn():
    with pytest.raises(ValueError, match="of which classes"):
        draw(Generator(Architecture(width=8, classes=3)), 4, [], 0, 28)


def test_a_batch_has_at_most_a_million_parts():
    assert Config(parts=1 << 20).parts == 1 << 20
    with pytest.raises(UsageError, match="at most 2.20, not 2097152"):
        Config(parts=1 << 21)
