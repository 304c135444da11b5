"""Exact solutions: the flows of Kovasznay and Beltrami, and Burgers' shock."""

import numpy as np

REYNOLDS = 40.0  # of Kovasznay's flow
VISCOSITY = 0.01 / np.pi  # of Burgers' equation
# Over a distance of 13 the integrand falls by exp(-60) or more. Twice as many nodes
# change only the last digit.
_REACH, _NUM_NODES = 13.0, 801


def kovasznay(points: np.ndarray) -> np.ndarray:
    """Returns velocities and pressure `[num, 3]` at points `[num, 2]`.

    Kovasznay, "Laminar flow behind a two-dimensional grid", 1948.
    """
    x, y = points[:, 0], 2 * np.pi * points[:, 1]
    rate = REYNOLDS / 2 - (REYNOLDS**2 / 4 + 4 * np.pi**2) ** 0.5
    decay = np.exp(rate * x)
    u, v = 1 - decay * np.cos(y), rate / (2 * np.pi) * decay * np.sin(y)
    return np.stack([u, v, (1 - decay**2) / 2], axis=1)


def beltrami(points: np.ndarray) -> np.ndarray:
    """Returns velocities and pressure `[num, 4]` at points `[num, 4]` of t, x, y, z.

    Ethier and Steinman, "Exact fully 3D Navier-Stokes solutions for benchmarking",
    1994, with a = d = 1 and viscosity 1.
    """
    t, *place = points.T
    velocity, pressure = [], 0.0
    for turn in range(3):  # a component is the first with x, y, z rotated
        x, y, z = place[turn:] + place[:turn]
        wave = np.exp(x) * np.sin(y + z) + np.exp(z) * np.cos(x + y)
        velocity.append(-wave * np.exp(-t))
        twice = 2 * np.sin(x + y) * np.cos(z + x) * np.exp(y + z)
        pressure = pressure - (np.exp(2 * x) + twice) / 2 * np.exp(-2 * t)
    return np.stack([*velocity, pressure], axis=1)


def burgers(points: np.ndarray, viscosity: float = VISCOSITY) -> np.ndarray:
    r"""Returns :math:`u(t, x)`, `[num, 1]`, at points `[num, 2]`, in float64.

    .. math:: u_t + u u_x = \nu u_{xx}, \qquad u(0, x) = -\sin \pi x

    The transformation of Cole and Hopf turns the equation into the heat equation, whose
    solution is a convolution with a Gaussian: Basdevant et al., "Spectral and finite
    difference solutions of the Burgers equation", 1986. The trapezoidal rule is exact
    to rounding for such integrals.
    """
    t, x = np.asarray(points, float).T[..., None]
    nodes = np.linspace(-_REACH, _REACH, _NUM_NODES)
    y = np.pi * (x - 2 * np.sqrt(viscosity * t) * nodes)
    exponent = -np.cos(y) / (2 * np.pi * viscosity) - nodes**2
    weights = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    mean = np.sum(np.sin(y) * weights, axis=1) / np.sum(weights, axis=1)
    return -mean[:, None]
