"""Spectral density by stochastic Lanczos quadrature, with what is known of its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.core.optional import need
from sparseflow.measure.lanczos import Krylov, Operator, lanczos, rows_of, signs, tridiagonal
from sparseflow.measure.spectrum import NEGATIVE, Trace, average


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Gauss rule of one probe z: Σ wᵢ f(θᵢ) ≈ zᵀ f(operator) z / n, exact to degree 2m − 1.

    Attributes:
        nodes: Ritz values, smallest first.
        weights: they add up to 1.
        residuals: an eigenvalue of H lies within this of each node.
        diagonal: of the tridiagonal matrix of the Lanczos run.
        off_diagonal: next to its diagonal; the last entry couples it to the rest of
            the space and is 0 if the rule is exact.
    """

    nodes: Float[Tensor, " m"]
    weights: Float[Tensor, " m"]
    residuals: Float[Tensor, " m"]
    diagonal: Float[Tensor, " m"]
    off_diagonal: Float[Tensor, " m"]

    def bracket(self, threshold: float) -> tuple[float, float]:
        """Bounds on the probe's weight below a threshold, the best that its moments give.

        The rule with one more node, set at the threshold (Gauss-Radau), has
        no more weight below it than the true measure, and no less up to it
        (inequality of Chebyshev, Markov and Stieltjes).
        """
        nodes, weights = self.nodes, self.weights
        if not float(self.off_diagonal[-1]):
            exact = float(weights[nodes < threshold].sum())
            return exact, exact
        if float((nodes - threshold).abs().min()) > 1e-12 * float(nodes.abs().max()):
            nodes, weights = self._with_node(threshold)
        at = int((nodes - threshold).abs().argmin())
        below = float(weights[:at].sum())
        return below, below + float(weights[at])

    def _with_node(self, at: float) -> tuple[Tensor, Tensor]:
        last = torch.linalg.eigh(tridiagonal(self.diagonal, self.off_diagonal[:-1]))[1][-1]
        pull = float(self.off_diagonal[-1] ** 2 * (last**2 / (self.nodes - at)).sum())
        diagonal = torch.cat([self.diagonal, self.diagonal.new_tensor([at + pull])])
        nodes, vectors = torch.linalg.eigh(tridiagonal(diagonal, self.off_diagonal))
        return nodes, vectors[0] ** 2


@dataclass(frozen=True)
class Share:
    """A share of the eigenvalues.

    Attributes:
        value: middle between the bounds.
        error: its standard error over probes alone.
        low: end of the 95 % interval: the mean lower bound of the quadrature,
            less Student's t times the standard error of that mean.
        high: the other end.
    """

    value: float
    error: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Curve:
    """A smoothed density.

    Attributes:
        grid: where it is evaluated.
        mean: mean over the probes; it integrates to 1.
        error: standard error over the probes.
    """

    grid: Float[Tensor, " points"]
    mean: Float[Tensor, " points"]
    error: Float[Tensor, " points"]


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """Estimate of the density of eigenvalues, Σ δ(λ − λᵢ) / n.

    Attributes:
        size: n, the number of eigenvalues.
        probes: the quadrature of each probe.
    """

    size: int
    probes: tuple[Quadrature, ...]

    @property
    def largest(self) -> float:
        """Largest Ritz value: λ_max is at least this, up to rounding."""
        return max(float(p.nodes[-1]) for p in self.probes)

    @property
    def largest_residual(self) -> float:
        """An eigenvalue lies within this of :attr:`largest`."""
        return float(max(self.probes, key=lambda p: float(p.nodes[-1])).residuals[-1])

    @property
    def smallest(self) -> float:
        """Smallest Ritz value: λ_min is at most this, up to rounding."""
        return min(float(p.nodes[0]) for p in self.probes)

    @property
    def smallest_residual(self) -> float:
        """An eigenvalue lies within this of :attr:`smallest`."""
        return float(min(self.probes, key=lambda p: float(p.nodes[0])).residuals[0])

    @property
    def trace(self) -> Trace:
        """Sum of the eigenvalues."""
        return Trace(*average([self.size * float(p.weights @ p.nodes) for p in self.probes]))

    @property
    def negative_share(self) -> Share:
        """Share of eigenvalues below −10⁻³ · λ_max."""
        return self.below(-NEGATIVE * self.largest)

    def below(self, threshold: float) -> Share:
        """Share of eigenvalues below a threshold, with its interval.

        Two things are not known: how a probe's weights differ from 1/n, which
        the spread over probes shows; and where between two nodes the weight of
        a probe lies, which it does not show. For the second each probe gives
        rigorous bounds, and the interval contains both. More steps draw the
        bounds together, more probes the spread.
        """
        brackets = [p.bracket(threshold) for p in self.probes]
        middle, error = average([(low + high) / 2 for low, high in brackets])
        lower, lower_error = average([low for low, _ in brackets])
        upper, upper_error = average([high for _, high in brackets])
        t = float(need("scipy.special", extra="measure").stdtrit(len(brackets) - 1, 0.975))
        low, high = lower - t * lower_error, upper + t * upper_error
        return Share(middle, error, max(low, 0.0), min(high, 1.0))

    def density(self, grid: Tensor | None = None, sigma: float | None = None) -> Curve:
        """Smooth the nodes with a Gaussian.

        Args:
            grid: where to evaluate; None is 500 points over the spectrum.
            sigma: standard deviation; None is 1 % of the spectrum's width.

        Raises:
            MeasureError: if ``sigma`` is not positive.
        """
        width = self.largest - self.smallest or max(abs(self.largest), 1.0)
        sigma = width / 100 if sigma is None else sigma
        if sigma <= 0:
            raise MeasureError(f"sigma is {sigma}; it should be positive")
        if grid is None:
            ends = self.smallest - 4 * sigma, self.largest + 4 * sigma
            grid = torch.linspace(*ends, 500, dtype=torch.float64)
        rows = [_smooth(p, grid.double(), sigma) for p in self.probes]
        mean = torch.stack(rows).mean(0)
        return Curve(grid, mean, torch.stack(rows).std(0) / math.sqrt(len(rows)))


def _smooth(probe: Quadrature, grid: Tensor, sigma: float) -> Tensor:
    distance = (grid[:, None] - probe.nodes.to(grid.device)) / sigma
    peaks = torch.exp(-(distance**2) / 2) / (sigma * math.sqrt(2 * math.pi))
    return peaks @ probe.weights.to(grid.device)


def spectral_density(
    operator: Operator, steps: int = 80, probes: int = 4, seed: int = 0
) -> SpectralDensity:
    """Estimate the density of eigenvalues by stochastic Lanczos quadrature.

    From each of some random vectors of ±1, ``steps`` Lanczos iterations give a
    Gauss rule for that vector's spectral measure, whose mean is the density
    (Golub and Meurant 2010, chapters 6 and 11). It costs ``steps · probes``
    products, and the extreme eigenvalues come with it.

    Args:
        operator: what :func:`sparseflow.hessian` gives, or a symmetric matrix.
        steps: Lanczos iterations of each probe.
        probes: random vectors, at least 2, so that there is an error bar.
        seed: of the probes.

    Raises:
        MeasureError: if there are fewer probes, or no step.

    Example:
        >>> H = torch.diag(torch.tensor([3.0, -1.0, 2.0, 2.0]))
        >>> density = spectral_density(H)
        >>> round(density.largest, 6), round(density.negative_share.value, 6)
        (3.0, 0.25)
    """
    n = rows_of(operator)
    if probes < 2:
        raise MeasureError(f"probes is {probes}; an error bar needs at least 2")
    if steps < 1:
        raise MeasureError(f"steps is {steps}; it should be at least 1")
    starts = signs(n, probes, seed, "density").to(operator.device)
    runs = lanczos(operator, starts, steps)
    return SpectralDensity(n, tuple(_quadrature(run) for run in runs))


def _quadrature(run: Krylov) -> Quadrature:
    nodes, vectors = torch.linalg.eigh(run.tridiagonal.cpu())
    off_diagonal = torch.cat([run.off_diagonal, run.off_diagonal.new_tensor([run.rest])]).cpu()
    residuals = off_diagonal[-1] * vectors[-1].abs()
    return Quadrature(nodes, vectors[0] ** 2, residuals, run.diagonal.cpu(), off_diagonal)
