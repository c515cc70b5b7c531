"""What the steps of a training are given: images and classes of the data, noise, and the draws that augment images.

All of it follows from the config, the data and the number of the step, so that a resumed run is given what the
uninterrupted one was. Each process that shares a batch draws for all of it, and takes its share.
"""

import numpy as np

from minisagan import data, processes, rng
from minisagan.errors import UsageError


class Inputs:
    """The inputs of micro-batches t = 0, 1, ...

    `dataset` has the labels on the host; `source` is the same data where the networks are.
    """

    def __init__(self, config, dataset, source):
        if len(dataset) < config.batch_size:
            least = config.accumulate * config.architecture.pack
            most = len(dataset) // least * least
            raise UsageError(
                f"a batch of {config.batch_size} is larger than {dataset.name}'s {len(dataset)} images: "
                + (f"choose --batch-size {most} or less" if most else "a batch has --accumulate times --pack at least")
            )
        self.config, self.source, self.size = config, source, len(dataset)
        arch = config.architecture
        self.by_class = data.by_class(dataset.labels if arch.classes else 0 * dataset.labels) if arch.pack > 1 else None

    def seen(self, t):
        """Which images D sees, (n,): the next ones in the data's order, then those that each is packed with."""
        c, k = self.config.micro, self.config.architecture.pack
        n = c.batch_size // k
        indices = data.batch_indices(t * n, n, self.size, c.seed)
        more = data.companions(indices, k - 1, self.by_class, c.seed, t) if k > 1 else []
        return np.concatenate([indices, *more])

    def order(self, count, step):
        """Which images D sees in `count` steps from this one on, where these lie: (count, d_steps, accumulate, n)."""
        c = self.config
        batches = c.d_steps * c.accumulate  # of a step
        order = [self.seen(step * batches + i) for i in range(count * batches)]
        return np.asarray(np.reshape(order, (count, c.d_steps, c.accumulate, -1)), like=self.source.images)

    def micro_batches(self, t):
        """The numbers of the micro-batches of step t of an optimiser."""
        K = self.config.accumulate
        return [t * K + k for k in range(K)] if K > 1 else [t]  # which is an array: nothing to launch on a GPU

    def of_d(self, indices, t):
        """Of a step of D that sees these images: (images, labels, z, draws).

        The generated images have the classes of the real ones. Eq. 4 of the paper draws their y from the data, too; its
        code draws all classes equally often. So D is shown as many real as generated images of each class. Classes
        drawn at random made D's judgement, and G's classes with it, less certain (numbers: examples/README.md).
        """
        c, share = self.config.micro, processes.share
        flip = c.flip and not c.augment
        flips = rng.uniform((c.batch_size,), c.seed, rng.Stream.FLIP, t) < 0.5 if flip else None
        images, labels = data.batch(self.source, share(indices), share(flips))
        labels = labels if c.architecture.classes else None
        z = share(rng.normal((c.batch_size, c.architecture.latent), c.seed, rng.Stream.Z_D, t))
        draws = [self.draws(stream, t) for stream in (rng.Stream.AUGMENT_REAL, rng.Stream.AUGMENT_FAKE)]
        return images, labels, z, draws

    def draws(self, stream, t):
        """By what this process's images are augmented, if they are: (n, 4), or (n, 5) where they may be mirrored."""
        c = self.config.micro
        return processes.share(rng.uniform((c.batch_size, 4 + c.flip), c.seed, stream, t)) if c.augment else None
