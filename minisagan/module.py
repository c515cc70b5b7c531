"""What holds parameters and state: networks, blocks and layers alike.

A module's parameters and buffers are named by the path of attributes that leads to them (`up8.conv1.w`), in the order
of their creation: those names are the ones in checkpoints.
"""

import numpy as np

from minisagan import cuda
from minisagan.autograd import Tensor


class Module:
    """Finds the parameters, buffers and modules among its attributes.

    A network is called by one thread at a time: what a call computes for all its layers lies on them meanwhile.
    """

    training = True

    def parameters(self):
        """All Tensors, name -> Tensor."""
        return dict(self._named(Tensor))

    def buffers(self):
        """All state that is no parameter (u, running mean and variance), name -> array."""
        return dict(self._named(cuda.arrays()))

    def state(self):
        """All arrays, name -> the live array: the parameters' and the buffers."""
        return {name: p.data for name, p in self.parameters().items()} | self.buffers()

    def to(self, like):
        """Move all parameters and buffers to where the array `like` lies, on the CPU or the GPU; returns itself."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value.data = np.asarray(value.data, like=like)
            elif isinstance(value, Module):
                value.to(like)
            elif isinstance(value, cuda.arrays()):
                setattr(self, name, np.asarray(value, like=like))
        return self

    def train(self, training=True):
        """Set the mode of this module and all inside it; returns itself."""
        self.training = training
        for child in vars(self).values():
            if isinstance(child, Module):
                child.train(training)
        return self

    def eval(self):
        """Running statistics, u at rest: the same input gives the same output, bit for bit."""
        return self.train(False)

    def modules(self, kind):
        """All modules of this kind, this one included."""
        if isinstance(self, kind):
            yield self
        for child in vars(self).values():
            if isinstance(child, Module):
                yield from child.modules(kind)

    def _named(self, kind):
        for name, value in vars(self).items():
            if isinstance(value, kind):
                yield name, value
            elif isinstance(value, Module):
                yield from ((f"{name}.{rest}", found) for rest, found in value._named(kind))
