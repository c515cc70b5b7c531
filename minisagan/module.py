"""What holds parameters and state: networks, blocks and layers alike.

A module's parameters and buffers are named by the path of attributes that leads to them (`up8.conv1.w`, and
`heads.0.w` in a list of modules), in the order of their creation: those names are the ones in checkpoints. An own
network is saved and loaded by

    checkpoint.save(path, network.state(), {})
    checkpoint.match(checkpoint.load(path)[0], network.state())
"""

import numpy as np

from minisagan import cuda
from minisagan.autograd import Tensor


class Module:
    """Finds the parameters, buffers and modules among its attributes, and modules in lists and tuples of them.

    Parameters are Tensors. Buffers are arrays, and stay such if they are changed in place: `self.seen[...] += 1`.
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
        for name, value in self._parts():
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
        for _, child in self._parts():
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
        for _, child in self._parts():
            if isinstance(child, Module):
                yield from child.modules(kind)

    def _parts(self):
        """The attributes, (name, value); those of lists of modules each by itself, as `name.0`, `name.1`, ..."""
        for name, value in vars(self).items():
            if isinstance(value, list | tuple) and value and all(isinstance(each, Module) for each in value):
                yield from ((f"{name}.{i}", each) for i, each in enumerate(value))
            else:
                yield name, value

    def _named(self, kind):
        for name, value in self._parts():
            if isinstance(value, kind):
                yield name, value
            elif isinstance(value, Module):
                yield from ((f"{name}.{rest}", found) for rest, found in value._named(kind))
