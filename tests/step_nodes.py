"""What a training step on the GPU consists of: the nodes of its graph and the bytes that they move, by name.

    python tests/step_nodes.py             # the default's networks, those of --dataset mnist but for its pairs
    python tests/step_nodes.py --paper     # 128x128, width 64, batch 64, 1000 classes; takes 2 GB

The graph is recorded by the emulation and not run. A node reads or writes each of its arrays once: that is what the
bytes are, those that a cache saves or repeats are not in it. (Adam's weights and moments are read and written.)
"""

import sys
from collections import defaultdict

from ranks import emulated

from minisagan import cuda, parity
from minisagan.config import Architecture, Config
from minisagan.train import Training

SMALL = Architecture(width=4, attention=8, attention_key=8, latent=8, classes=3)
PAPER = Architecture(size=128, channels=3, width=64, classes=1000, attention=32)
TWICE = {"adam": 7 / 4, "ema": 3 / 2}  # of the bytes of their arrays


def recorded(config):
    """(name, bytes) of each node of a step of D and G: recorded on the GPU in use, whose kernels load."""
    small = Config(batch_size=2, flip=config.flip, architecture=SMALL)
    Training(small, parity.noise_images(small, 4), gpu=True, graph=False).advance()
    training = Training(config, parity.noise_images(config, config.batch_size), gpu=True)
    training.step_both._record()
    return training.step_both.recorded.nodes


def main(paper):
    emulated(gpus=1)
    cuda.tf32 = True
    cuda.use(0)
    totals = defaultdict(lambda: [0, 0.0])  # nodes, bytes
    for name, nbytes in recorded(Config(flip=True, architecture=PAPER) if paper else Config()):
        totals[name][0] += 1
        totals[name][1] += nbytes * TWICE.get(name, 1)
    print(f"{'':26}{'nodes':>6}{'MB':>11}")
    for name, (count, nbytes) in sorted(totals.items(), key=lambda item: -item[1][0]):
        print(f"{name:26}{count:6}{nbytes / 1e6:11.1f}")
    count, nbytes = map(sum, zip(*totals.values(), strict=True))
    print(f"{'all':26}{count:6}{nbytes / 1e6:11.1f}")


if __name__ == "__main__":
    main("--paper" in sys.argv[1:])
