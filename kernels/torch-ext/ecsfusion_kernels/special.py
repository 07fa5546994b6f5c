"""Device code for the logarithm of the gamma function and its derivative, by Stirling's series, in float64.

An argument z is first moved up: G(z) = G(z + 8) / (z (z + 1) ... (z + 7)), from where the series are exact to 1e-14.
"""

from __future__ import annotations

from .language import jit, tl


@jit
def rising(z):
    """P = z (z + 1) ... (z + 7), and the sum of 1 / (z + i) times P, which is its derivative."""
    product, slope = z, tl.where(z > 0, 1.0, 1.0).to(tl.float64)
    for i in tl.static_range(1, 8):
        slope = slope * (z + i) + product
        product = product * (z + i)
    return product, slope


@jit
def stirling(z, log_z):
    """Log gamma of numbers z of at least 8, whose logarithm is given."""
    inverse = 1.0 / z
    square = inverse * inverse
    series = 1.0 / 1188 - square * (691.0 / 360360 - square / 156)
    series = 1.0 / 12 - square * (1.0 / 360 - square * (1.0 / 1260 - square * (1.0 / 1680 - square * series)))
    return (z - 0.5) * log_z - z + 0.9189385332046727 + inverse * series


@jit
def stirling_slope(z, log_z):
    """Its derivative, digamma."""
    inverse = 1.0 / z
    square = inverse * inverse
    series = 1.0 / 240 - square * (1.0 / 132 - square * (691.0 / 32760 - square / 12))
    series = square * (1.0 / 12 - square * (1.0 / 120 - square * (1.0 / 252 - square * series)))
    return log_z - 0.5 * inverse - series


@jit
def log_gamma(z):
    """Log gamma of positive float64 numbers."""
    product, _ = rising(z)
    # Numbers that large need no other, and their product may be infinite.
    moved = z < 8.0
    high = tl.where(moved, z + 8.0, z)
    return stirling(high, tl.log(high)) - tl.log(tl.where(moved, product, 1.0))


@jit
def digamma(z):
    """The derivative of log gamma, of positive float64 numbers."""
    product, slope = rising(z)
    moved = z < 8.0
    high = tl.where(moved, z + 8.0, z)
    return stirling_slope(high, tl.log(high)) - tl.where(moved, slope / tl.where(moved, product, 1.0), 0.0)
