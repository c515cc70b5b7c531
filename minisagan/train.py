"""Training: one step of the discriminator, one of the generator, and the loop of both (SAGAN eq. 4; sec. 4).

    D:  minimise  mean relu(1 - D(x, y)) + mean relu(1 + D(G(z, y'), y'))
    G:  minimise  -mean D(G(z, y'), y')

with two Adams of different rates (TTUR), spectral norm in both networks, and a running average of G's weights, from
which samples are drawn. The y' are the y of the real images (inputs.py says why). z is drawn anew for each step of D;
G then learns from the images that D has just seen (`Training.step_both` says why). Other losses are other functions of
D's scores, in place of the two of ops/hinge.py; batch.py says what several processes ask of them.
"""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from minisagan import cpu, cuda, ops, processes, rng, team
from minisagan.autograd import Tensor, ancestors, grad, no_tape
from minisagan.beyond.augment import augmented
from minisagan.beyond.pack import packed
from minisagan.flat import flatten
from minisagan.init import Init
from minisagan.inputs import Inputs
from minisagan.models import Discriminator, Generator
from minisagan.ops.hinge import mean_scores
from minisagan.optim import EMA, Adam
from minisagan.sampling import take_statistics

LOSSES = ("loss_d", "d_real", "d_fake", "loss_g")  # what is recorded of a step; d_real, d_fake: D's mean scores


def discriminator_step(D, adam, images, labels, fakes, fake_labels, draws=(None, None)):
    """One step of D on real images and on G's in one batch: each (n, S, S, C) in [-1, 1], as arrays; labels (n,).

    D has no batch norm, so the two halves do not see each other, and its spectral norm's u moves once. Labels are None
    for unconditional networks. A D of packs of k sees the images i, n/k + i, ... together (`packed`). `draws`, a pair
    for real and generated images, each (n, 4 or 5) in [0, 1) or None, are for `augmented`.
    Returns (loss, mean D(real), mean D(fake)).
    """
    if len(images) != len(fakes):
        raise ValueError(f"D sees as many real images as generated ones, not {len(images)} and {len(fakes)}")
    D.train()
    with no_tape():
        images, fakes = (augmented(Tensor(x), u).data for x, u in zip((images, fakes), draws, strict=True))
    images, labels = packed(images, labels, D.arch.pack)
    fakes, fake_labels = packed(fakes, fake_labels, D.arch.pack)
    both = None if labels is None else np.concatenate([labels, fake_labels])
    scores = D(np.concatenate([images, fakes]), both)  # (2n / k,), k = D.arch.pack
    loss = ops.hinge_discriminator(scores)
    descend(loss, D, adam)
    return loss.data, *mean_scores(scores.data)


def generator_step(G, D, adam, ema, fakes, labels, draws=None):
    """One step of G against D at rest, whose gradients are never computed. `fakes` = G(z, labels), of G's last call.

    They are a Tensor (n, S, S, C), whose tape leads back to G's weights. `draws` are for `augmented`. Returns (loss,).
    """
    D.eval()
    loss = ops.hinge_generator(D(*packed(augmented(fakes, draws), labels, D.arch.pack)))
    if descend(loss, G, adam):
        ema.step(processes.part(len(ema.weights)))
    return (loss.data,)


def descend(loss, network, adam):
    """One step of Adam down the gradient of `loss`, a mean over this process's images; returns whether it was made.

    ValueError if the loss does not come from the network's last call, or also depends on a weight in another way, such
    as by an earlier call or a penalty on W itself. For such a loss call grad() and adam.step(), in one process.

    The tape is walked in two parts. From the loss to the weights as the layers used them (W / sigma, biases, gains,
    gamma) it is about images, and gives this process's share of the batch's gradients. These are summed over all
    processes, once: the batch ends there. From W / sigma to W the tape is about weights alone, the same in each.
    An Adam that accumulates makes one step for so many losses, of micro-batches, down the mean of their gradients.
    """
    if not hasattr(network, "used"):
        kind = type(network).__name__
        raise ValueError(f"descend is for networks that are called inside spectral_weights; take grad() for {kind}")
    reached, used = ({id(x) for x in tensors} for tensors in (ancestors([loss], network.used), network.used))
    if not reached & used:
        raise ValueError("this loss does not come from the network's last call: was that made inside no_tape()?")
    if any(id(p) in reached - used for p in adam.parameters):
        raise ValueError(
            "this loss depends on weights in other ways than by the network's last call: by an earlier one (give it "
            "both batches at once), or by a weight itself (take grad() and adam.step())"
        )
    shares = grad(loss, network.used, np.full_like(loss.data, 1 / (processes.world() * adam.accumulate)))
    gradients = grad(network.used, adam.parameters, processes.total(shares))
    processes.publish()  # forks have one memory for the weights: nobody moves them while another still reads gamma
    moved = adam.step(gradients, processes.part(len(adam.weights)))
    if moved:
        processes.publish(adam.weights)
    return moved


class Training:
    """The networks, optimisers and counters of one run on `dataset`; `advance` makes steps, of D and of G.

    Everything that a step reads or moves is in `state` or follows from (config, step): a run that is stopped, saved,
    loaded and continued is the uninterrupted one. With `gpu` all of it lies on the GPU that cuda.use() chose, as do the
    data; with `graph`, each step of D and G after the first few is one launch of a recorded graph (with d_steps above 1
    each further step of D is one more). `processes` processes share each batch (None: all that MPI's launcher started,
    on GPUs with one each, else on a CPU as many as suit cpu.threads() and this batch), and not one bit of the weights
    depends on their number. The others start with the first step; later changes to `state` here reach forks as well,
    but no other ranks of MPI. The rates are the config's: what is set in `adam_g` or `adam_d` holds for this process's
    part of the weights alone.
    """

    def __init__(self, config, dataset, gpu=False, graph=True, processes=1):
        cpu.start()
        self.config, self.dataset, self.step = config, dataset, 0
        self.broken = False  # whether an error or Ctrl-C ended steps that were begun
        self.sampled_at = None  # the step for which the averaged generator's statistics were measured
        source = replace(dataset, images=cuda.put(dataset.images), labels=cuda.put(dataset.labels)) if gpu else dataset
        self.inputs = Inputs(config, dataset, source)
        arch, here, sizes = config.architecture, source.images, (config.accumulate, config.micro.batch_size)
        init = Init(config.seed, arch.init)
        self.G, self.D = Generator(arch, init).to(here), Discriminator(arch, init).to(here)
        self.average = Generator(arch, Init(config.seed, arch.init)).to(here)  # the same first weights
        same = {name: getattr(config, name) for name in ("beta1", "beta2", "fall", "accumulate")}
        self.adam_g = Adam(self.G.parameters(), config.lr_g, steps=config.steps, **same)
        self.adam_d = Adam(self.D.parameters(), config.lr_d, steps=config.steps * config.d_steps, **same)
        self.ema = EMA(self.adam_g.weights, flatten(self.average.parameters()), config.ema)
        self.indices = np.zeros(sizes, np.int64, like=here)  # which images the next step of D sees, in micro-batches
        self.losses = np.zeros((config.accumulate, len(LOSSES)), np.float32, like=here)  # of the last steps
        if gpu and graph:
            self.step_d = cuda.Graph(self.step_d)
            self.step_both = cuda.Graph(self.step_both, like=self.step_d)
        self.processes, self.team = team.size(processes, config, gpu), None
        self.invited = processes is None and team.invite(self)  # MPI's other ranks, if there are any

    def advance(self, count=1):
        """`count` training steps, each of `d_steps` steps of D and one of G. Returns the losses and scores of the last.

        They are name -> float; a GPU is waited for only here, so the longer `count`, the better it is used. Raises
        Diverged if a loss of any of the steps is not finite: it names the first tensor with a NaN or an infinity, and
        the rank of MPI.
        """
        if count < 1:
            raise ValueError(f"advance makes a step or more, not {count}")
        if self.config.fall and not self.config.steps:
            raise ValueError("a training of 0 steps has no time in which rates could fall: see end_at")
        if self.broken:
            raise RuntimeError("interrupted in the middle of a step: make this training anew, from its last checkpoint")
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what they lead to is seen below
            if not self.team or self.team.ended:
                self.team = team.assemble(self, self.invited)
            self.broken = True
            history = self.team.run(self.make_steps, count, self.step)  # (count, world, accumulate, len(LOSSES))
        history = cuda.to_host(history)
        self.step += count
        self.broken = False
        if not np.isfinite(history).all():
            raise team.diverged(self, ~np.isfinite(history))
        last = processes.halved(history[-1]) / history.shape[1]  # (accumulate, len(LOSSES))
        return dict(zip(LOSSES, last.mean(0).tolist(), strict=True))

    def make_steps(self, count, step):
        """Losses and scores of `count` steps from this one on, of each process: (count, world, *losses.shape)."""
        history = np.empty((count, processes.world(), *self.losses.shape), np.float32, like=self.losses)
        for k, (*before, last) in enumerate(self.inputs.order(count, step)):
            for indices in before:
                self.indices[...] = indices
                self.step_d()
            self.indices[...] = last
            self.step_both()
            history[k] = processes.gather(self.losses)
        return history

    # What changes from step to step comes from arrays, and the results go to arrays: a GPU repeats this without Python.

    def step_d(self):
        """One of the d_steps - 1 steps that D makes before that of both."""
        for k, t in enumerate(self.inputs.micro_batches(self.adam_d.t)):
            self._discriminate(k, t)

    def step_both(self):
        """One step of D and one of G, from the same generated images: G runs once for both.

        G's tape stays valid, since D's step changes nothing that G computed with; G's loss then comes from the updated
        D. The paper's code draws other images for G's step. To share them takes 0.83 of the time with the digits'
        recipe, and a sixth to a quarter more memory, for the tape; what digits come to is in examples/README.md.
        Micro-batches are there to save memory: for them no tape is kept, and G makes the images again from the same z,
        with a u that has moved on meanwhile.
        """
        whole = self.config.accumulate == 1
        seen = [self._discriminate(k, t, tape=whole) for k, t in enumerate(self.inputs.micro_batches(self.adam_d.t))]
        for k, t in enumerate(self.inputs.micro_batches(self.adam_g.t)):
            z, labels, fakes = seen[k]
            fakes = fakes if whole else self.G(z, labels)
            given = fakes, labels, self.inputs.draws(rng.Stream.AUGMENT_G, t)
            (self.losses[k, 3],) = generator_step(self.G, self.D, self.adam_g, self.ema, *given)

    def _discriminate(self, k, t, tape=False):
        """Micro-batch k of a step of D, t of all: (z, labels, G(z, labels)); without its tape the latter is None."""
        images, labels, z, draws = self.inputs.of_d(self.indices[k], t)
        with nullcontext() if tape else no_tape():
            fakes = self.G.train()(z, labels)
        given = images, labels, fakes.data, labels, draws
        self.losses[k, 0], self.losses[k, 1], self.losses[k, 2] = discriminator_step(self.D, self.adam_d, *given)
        return z, labels, fakes if tape else None

    def complete(self):
        """Have all arrays here. MPI's other ranks keep what they alone update until somebody wants to read it."""
        if self.team:
            self.team.complete()

    def end_at(self, steps):
        """Let the run end after so many steps: a rate that falls to 0 does so then."""
        self.config = replace(self.config, steps=steps)
        self.adam_g.steps[...], self.adam_d.steps[...] = steps, steps * self.config.d_steps

    def sampler(self):
        """The generator to sample from, in evaluation mode: G's running average, with its own batch statistics.

        An average of G's statistics would not be the averaged network's own, so they are measured. With ema = 0 the
        weights are G's.
        """
        if self.sampled_at != self.step:
            self.complete()
            if not self.config.ema:
                self.ema.average[...] = self.adam_g.weights
            take_statistics(self.average, self.G, self.config)
            self.sampled_at = self.step
        return self.average

    def state(self):
        """All arrays of the run, name -> the live array: what a checkpoint holds, and what loading writes into."""
        self.complete()
        parts = {name: getattr(self, name).state() for name in ("G", "D", "average")}
        for name, adam in (("adam_g", self.adam_g), ("adam_d", self.adam_d)):
            parts[name] = {"m": adam.m, "v": adam.v, "t": adam.t}
        parts["ema"] = {"t": self.ema.t}
        return {f"{name}.{key}": x for name, arrays in parts.items() for key, x in arrays.items()}
