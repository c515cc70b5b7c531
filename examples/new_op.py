"""A new op: its equation, its backward pass, the check that the two agree, and a small network that learns with it.

    swish      y = x s,   s = 1 / (1 + exp(-x))          dx = g (s + y (1 - s))

(Elfwing, Uchibe and Doya 2018; Ramachandran, Zoph and Le 2017.) With half of the product rule the loss falls as well,
so training alone would not tell. The gradient checker does.
"""

import numpy as np

from minisagan import ops, rng
from minisagan.autograd import Tensor, grad
from minisagan.gradcheck import check
from minisagan.optim import Adam


def swish(x):
    """x / (1 + exp(-x)), element by element, any shape: values above -0.279."""
    s = sigmoid(x.data)
    y = x.data * s
    return Tensor(y, (x,), lambda g, needs: (g * (s + y * (1 - s)),))


def forgetful(x):
    """swish with half of the product rule: s is differentiated as if it were a constant."""
    s = sigmoid(x.data)
    return Tensor(x.data * s, (x,), lambda g, needs: (g * s,))


def hasty(x):
    """swish with x where y belongs: 1 - s is multiplied by x, not by x s."""
    s = sigmoid(x.data)
    return Tensor(x.data * s, (x,), lambda g, needs, x=x.data: (g * (s + x * (1 - s)),))


def sigmoid(x):
    return (1 + np.tanh(x / 2)) / 2  # 1 / (1 + exp(-x)), with nothing that can overflow


def fit(activation, steps=500, width=16):
    """Fit sin on [-3, 3] by one hidden layer; yields (step, mean squared error) now and then."""
    x = Tensor(np.linspace(-3, 3, 64, dtype=np.float32)[:, None])  # (64, 1)
    wanted = np.sin(x.data)
    net = {
        "w1": Tensor(rng.normal((1, width), 0, rng.Stream.INIT, 1)),
        "b1": Tensor(rng.normal((width,), 0, rng.Stream.INIT, 2)),
        "w2": Tensor(rng.normal((width, 1), 0, rng.Stream.INIT, 3) / 4),
    }
    adam = Adam(net, lr=0.01, beta1=0.9, beta2=0.999)
    for step in range(steps + 1):
        error = activation(x @ net["w1"] + net["b1"]) @ net["w2"] - wanted  # (64, 1)
        loss = ops.mean(error * error)
        if step % 100 == 0:
            yield step, float(loss.data)
        adam.step(grad(loss, list(net.values())))


def main():
    x = np.random.default_rng(0).standard_normal((3, 4))
    print("The checker, on the right backward pass and on two wrong ones:")
    for op in (swish, forgetful, hasty):
        print(" ", check(op, x, name=op.__name__))
    for op in (swish, forgetful):
        print(f"\nFitting a sine with {op.__name__}: step, mean squared error")
        for step, loss in fit(op):
            print(f"  {step:4}  {loss:.6f}")


if __name__ == "__main__":
    main()
