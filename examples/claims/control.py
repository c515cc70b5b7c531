"""The paper's control for attention (SAGAN sec. 5.2, table 1): a residual block of as many weights in its place."""

from minisagan import nn
from minisagan.init import Init


class ResidualBlock(nn.Module):
    """y = x + gamma conv1x1(relu(conv3x3(relu(x)))), with the fewest channels inside that give it no fewer weights than
    attention has. It takes SelfAttention's place, with its arguments."""

    def __init__(self, init, channels, form="official", spectral=True, key=None):
        attention = nn.SelfAttention(Init(0), channels, form, spectral, key).parameters().values()
        weights = sum(p.data.size for p in attention) - 1  # but for gamma, which both have
        inside = -(-weights // (10 * channels))  # 9 C inside + inside C weights
        self.conv1 = nn.Conv(init, channels, inside, bias=False, spectral=spectral)
        self.conv2 = nn.Conv(init, inside, channels, kernel=1, bias=False, spectral=spectral)
        self.gamma = init.constant((), 0)

    def __call__(self, x):
        return x + self.gamma * self.conv2(self.conv1(x, relu=True), relu=True)
