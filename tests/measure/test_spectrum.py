"""Eigenvalues, densities and traces of matrices whose spectra are known."""

import importlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import MeasureError
from sparseflow.measure.density import SpectralDensity, spectral_density
from sparseflow.measure.lanczos import lanczos, signs
from sparseflow.measure.operators import gauss_newton, hessian
from sparseflow.measure.spectrum import average, eigenvalues, spectrum, trace
from sparseflow.models import build

DOUBLE = torch.float64


def network_curvature(make=hessian, dtype=DOUBLE, examples=9, width=16):
    """Of a small sparse convolutional network, which has negative eigenvalues too."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, width)
    )
    masks = sf.sparsify(model, density=0.4, init=None)
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, std=0.3)
    batch = torch.randn(examples, 1, 6, 6), torch.randint(width, (examples,))
    return make(model, sf.cross_entropy, batch, masks, dtype=dtype)


# ---- eigenvalues


def symmetric(values, seed=0):
    """A matrix with the given eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=DOUBLE)
    stream = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=stream, dtype=DOUBLE))
    matrix = q * values @ q.T
    return (matrix + matrix.T) / 2


def quadratic(matrix):
    """A model and a loss whose Hessian is the matrix."""
    model = nn.Linear(len(matrix), 1, bias=False).double()

    def loss(model, batch):
        w = model.weight[0]
        return 0.5 * w @ matrix @ w + 0 * batch.sum()

    return hessian(model, loss, torch.zeros(3, 1, dtype=DOUBLE))


def like_a_network(n=300):
    """A few large eigenvalues, many around zero, some clearly negative."""
    bulk = 1e-4 * torch.randn(n - 14, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    top = torch.tensor([10.0, 8, 5, 3, 2, 1, 0.9, 0.5, 0.2, 0.1], dtype=DOUBLE)
    return torch.cat([top, bulk, torch.tensor([-0.3, -0.1, -0.05, -0.02], dtype=DOUBLE)])


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("k", [1, 6, 30, 299])
def test_eigenvalues_against_numpy(which, k):
    matrix = symmetric(like_a_network())
    exact = np.linalg.eigvalsh(matrix.numpy())
    order = {"LA": -exact, "SA": exact, "LM": -abs(exact)}[which].argsort()[:k]
    expected = np.sort(exact[order])[::-1]
    found = eigenvalues(matrix, k, which, tol=1e-6)
    assert found.values.dtype == DOUBLE
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=0, atol=2e-5)
    assert float(found.residuals.max()) <= 1e-6
    error = (matrix @ found.vectors - found.values * found.vectors).norm(dim=0) / 10
    torch.testing.assert_close(found.residuals, error, rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(
        found.vectors.T @ found.vectors, torch.eye(k, dtype=DOUBLE), rtol=0, atol=1e-6
    )


def test_eigenvalues_of_float32_near_zero():
    """The tolerance is relative to max|λ|, so rounding does not keep Lanczos from ending."""
    matrix = symmetric(like_a_network()).float()
    matrix = (matrix + matrix.T) / 2
    found = eigenvalues(matrix, 8, "SA", tol=1e-5)
    expected = like_a_network().sort().values[:8].flip(0)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-4)


def test_eigenvalues_of_small_and_of_flat_operators():
    assert eigenvalues(torch.diag(torch.tensor([2.0, -3.0])), 2).values.tolist() == [2.0, -3.0]
    assert eigenvalues(torch.zeros(100, 100), 3).values.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_eigenvalues_that_occur_several_times(k, which):
    """The space of one vector has each once; when it is exhausted another follows."""
    values = torch.tensor([5.0] * 3 + [-2.0] * 2 + [0.0] * 70 + [1.0] * 25, dtype=DOUBLE)
    order = {"LA": -values, "SA": values, "LM": -values.abs()}[which].argsort()[:k]
    expected = values[order].sort(descending=True).values
    found = eigenvalues(symmetric(values), k, which)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize(("dtype", "tol"), [(DOUBLE, 1e-9), (torch.float32, 1e-5)])
def test_eigenvalues_of_a_network(which, dtype, tol):
    """In the type of the network, against its matrix in float64."""
    exact = spectrum(network_curvature()).values
    order = {"LA": -exact, "SA": exact, "LM": -exact.abs()}[which].argsort()[:5]
    operator = network_curvature(dtype=dtype)
    assert operator.shape[0] > 64
    found = eigenvalues(operator, 5, which, tol=tol)
    expected = exact[order].sort(descending=True).values
    torch.testing.assert_close(found.values, expected, rtol=0, atol=tol * float(exact.abs().max()))
    assert float(found.residuals.max()) <= tol


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_eigenvalues_of_a_matrix_without_full_rank(which, dtype):
    """Three examples of 16 classes: the rank is 45 at most, and 50 are asked for."""
    exact = spectrum(network_curvature(gauss_newton, examples=3)).values
    assert int((exact > 1e-9 * exact[0]).sum()) <= 45
    expected = exact[-50:] if which == "SA" else exact[:50]
    found = eigenvalues(network_curvature(gauss_newton, dtype, examples=3), 50, which)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-4 * float(exact[0]))


def test_eigenvalues_close_together():
    """Ten within a millionth: the values are right, whichever of them they are."""
    cluster = 1 + 1e-7 * torch.arange(10, dtype=DOUBLE)
    values = torch.cat([cluster, -0.7 - cluster / 100, like_a_network(200)[10:] / 2])
    matrix = symmetric(values)
    for which, end in (("LA", cluster.mean()), ("SA", -0.7 - cluster.mean() / 100)):
        found = eigenvalues(matrix, 6, which, tol=1e-5)
        torch.testing.assert_close(found.values, end.expand(6), rtol=0, atol=2e-5)


def test_no_start_vector_hides_an_eigenvalue():
    """At a loose tolerance, whatever the start."""
    values = torch.linspace(0.2, 1, 5, dtype=DOUBLE)
    values = torch.cat([10 * values, -9.5 * values, like_a_network(90)[10:]])
    wanted = values[values.abs().argsort(descending=True)[:10]].sort(descending=True).values
    matrix = torch.diag(values)
    for seed in range(40):
        found = eigenvalues(matrix, 10, "LM", tol=1e-2, seed=seed)
        torch.testing.assert_close(found.values, wanted, rtol=0, atol=0.05)


def test_eigenvalues_are_the_same_every_time():
    matrix = symmetric(like_a_network())
    a, b = eigenvalues(matrix, 3), eigenvalues(matrix, 3)
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.vectors, b.vectors)


def test_an_iteration_that_does_not_converge_says_how_far_it_came():
    even = symmetric(torch.linspace(0, 1, 400))
    message = (
        r"did not converge: 0 of 3 eigenvalues .* 1e-10 · max\|λ\| in \d\d products "
        r"\(2 restarts\); raise maxiter or tol$"
    )
    with pytest.raises(MeasureError, match=message):
        eigenvalues(even, 3, tol=1e-10, maxiter=2)
    with pytest.raises(MeasureError, match=r"[1-9] of 6 .*, or compute in float64"):
        eigenvalues(symmetric(like_a_network()).float(), 6, "SA", tol=1e-6, maxiter=1)


def test_the_residual_is_that_of_a_product_of_its_own(monkeypatch):
    """Products right to one part in a thousand: the iteration would not notice."""
    module = importlib.import_module("sparseflow.measure.spectrum")
    exact = module.multiply

    def rounded(operator, v):
        step = 1e-3 * float(v.norm(dim=0).max())
        return (exact(operator, v) / step).round() * step

    monkeypatch.setattr(module, "multiply", rounded)
    with pytest.raises(
        MeasureError, match=r"0 of 3 eigenvalues have a residual within 1e-08 .*\de-0[34]"
    ):
        eigenvalues(symmetric(like_a_network()), 3, tol=1e-8)


def test_eigenvalues_that_do_not_exist():
    matrix = torch.eye(3)
    with pytest.raises(MeasureError, match="k is 4; an operator of 3 rows has 1 to 3"):
        eigenvalues(matrix, 4)
    with pytest.raises(MeasureError, match=r"tol is 1e-09; products in torch.float32 are right"):
        eigenvalues(matrix, tol=1e-9)
    with pytest.raises(MeasureError, match="symmetric floating matrix"):
        eigenvalues(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))


def test_spectrum_counts_negative_eigenvalues():
    values = like_a_network()
    found = spectrum(quadratic(symmetric(values)))
    torch.testing.assert_close(found.values, values.sort(descending=True).values)
    assert (found.largest, found.smallest) == (pytest.approx(10), pytest.approx(-0.3))
    assert found.negative == 4
    assert found.negative_share == 4 / 300
    with pytest.raises(MeasureError, match="300 active entries is over the limit of 299"):
        spectrum(quadratic(symmetric(values)), limit=299)


# ---- trace and density


def test_trace_within_its_error():
    values = like_a_network()
    matrix = symmetric(values)
    found = [trace(matrix, probes=16, seed=s) for s in range(60)]
    inside = sum(abs(f.value - float(values.sum())) < 2.13 * f.error for f in found)
    assert inside >= 52
    assert len({f.value for f in found}) == 60
    exact = trace(torch.diag(values), probes=3)
    assert exact.value == pytest.approx(float(values.sum()))
    assert exact.error == pytest.approx(0, abs=1e-12)
    with pytest.raises(MeasureError, match="probes is 1; an error bar needs at least 2"):
        trace(torch.eye(3), probes=1)


def test_the_error_of_a_mean_in_closed_form():
    assert average([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx(math.sqrt(14 / 3 / 4)))


CLUSTERS = {
    "decades": torch.logspace(0, -14, 60, dtype=DOUBLE),
    "outliers": torch.cat([torch.tensor([1e6, 1e3], dtype=DOUBLE), torch.linspace(0, 1, 98)]),
    "two clusters": torch.cat([c + 1e-10 * torch.linspace(0, 1, 50).double() for c in (1, 2)]),
}


@pytest.mark.parametrize("values", CLUSTERS.values(), ids=CLUSTERS)
def test_lanczos_vectors_stay_orthonormal(values):
    """Taking out the span of the earlier vectors once leaves 1e-5 to 1 of it here."""
    start = torch.randn(len(values), 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    basis = lanczos(torch.diag(values), start, 40)[0].basis
    gram = basis @ basis.T
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=DOUBLE), rtol=0, atol=1e-13)


def test_trace_of_a_network_against_the_explicit_matrix():
    matrix = network_curvature()
    found = sf.trace(matrix, probes=200)
    assert isinstance(found, sf.Trace)
    assert abs(found.value - float(matrix.dense().trace())) < 3 * found.error


def test_density_of_a_diagonal_matrix_is_exact():
    """Every ±1 vector has weight 1/n on each axis, and Lanczos ends after all 5 values."""
    values = torch.tensor([-2.0] * 10 + [-0.5] * 20 + [0.0] * 40 + [1.0] * 25 + [3.0] * 5)
    found = spectral_density(torch.diag(values.double()), steps=80, probes=3)
    assert [len(p.nodes) for p in found.probes] == [5, 5, 5]
    for probe in found.probes:
        torch.testing.assert_close(probe.nodes, values.double().unique())
        torch.testing.assert_close(
            probe.weights, torch.tensor([0.1, 0.2, 0.4, 0.25, 0.05], dtype=DOUBLE)
        )
        assert float(probe.residuals.max()) == 0
    share = found.negative_share
    assert (share.value, share.low, share.high) == pytest.approx((0.3, 0.3, 0.3))
    assert share.error == pytest.approx(0, abs=1e-12)
    assert found.below(2.0).value == pytest.approx(0.95)
    assert (found.largest, found.smallest) == pytest.approx((3.0, -2.0))
    assert found.trace.value == pytest.approx(float(values.sum()))


def test_density_with_a_step_for_every_row_is_the_probe_s_own_measure():
    matrix = symmetric(torch.linspace(-1, 1, 12))
    found = spectral_density(matrix, steps=50, probes=4)
    values, vectors = torch.linalg.eigh(matrix)
    weights = (vectors.T @ signs(12, 4, 0, "density")) ** 2 / 12
    for probe, expected in zip(found.probes, weights.T, strict=True):
        torch.testing.assert_close(probe.nodes, values)
        torch.testing.assert_close(probe.weights, expected)
        for threshold in (-2.0, -0.5, 0.1, 2.0):
            below = float(expected[values < threshold].sum())
            assert probe.bracket(threshold) == pytest.approx((below, below))


@pytest.mark.parametrize("steps", [1, 2, 5, 12, 30])
def test_brackets_hold_for_every_probe_and_threshold(steps):
    values = like_a_network(120)
    matrix = symmetric(values)
    exact, vectors = torch.linalg.eigh(matrix)
    weights = (vectors.T @ signs(120, 3, 7, "density")) ** 2 / 120
    found = spectral_density(matrix, steps=steps, probes=3, seed=7)
    nodes = torch.cat([p.nodes for p in found.probes])
    grid = torch.cat([torch.linspace(-0.4, 11, 40, dtype=DOUBLE), 1e-4 * nodes, nodes, exact[::7]])
    for probe, weight in zip(found.probes, weights.T, strict=True):
        for threshold in grid.tolist():
            low, high = probe.bracket(threshold)
            below = float(weight[exact < threshold - 1e-9].sum())
            upto = float(weight[exact <= threshold + 1e-9].sum())
            assert low <= upto + 1e-8
            assert high >= below - 1e-8
            assert low <= high


def test_brackets_close_with_the_steps():
    matrix = symmetric(like_a_network())
    widths = []
    for steps in (5, 20, 60):
        share = spectral_density(matrix, steps=steps, probes=2).below(0.05)
        widths.append(share.high - share.low)
    assert widths[0] > 10 * widths[2]
    assert widths[1] < 1.01 * widths[0]


@pytest.mark.parametrize("steps", [5, 15, 60])
def test_the_share_lies_in_its_interval(steps):
    """Of 80 intervals of 4 probes 19 in 20, whether or not the quadrature is resolved."""
    values = torch.randn(60, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    share = float((values < -1e-3 * values.max()).double().mean())
    many = spectral_density(symmetric(values), steps, 320, seed=1).probes
    found = [SpectralDensity(60, many[i : i + 4]).negative_share for i in range(0, 320, 4)]
    inside = sum(f.low <= share <= f.high for f in found)
    assert inside >= 71
    assert all(0 <= f.low <= f.value <= f.high <= 1 for f in found)
    if steps == 60:
        assert inside < 80


def test_extreme_eigenvalues_of_a_density():
    values = like_a_network()
    found = spectral_density(symmetric(values), steps=60, probes=2)
    assert found.largest == pytest.approx(10, rel=1e-6)
    assert found.smallest == pytest.approx(-0.3, rel=1e-3)
    assert abs(found.smallest + 0.3) <= found.smallest_residual + 1e-9
    rough = spectral_density(symmetric(values), steps=4, probes=2)
    assert min(abs(values - rough.largest)) <= rough.largest_residual
    assert min(abs(values - rough.smallest)) <= rough.smallest_residual


def test_smoothed_density():
    values = torch.cat([torch.full((30,), -1.0), torch.full((70,), 2.0)]).double()
    found = spectral_density(torch.diag(values), probes=2)
    grid = torch.tensor([-1.0, 0.5, 2.0], dtype=DOUBLE)
    curve = found.density(grid, sigma=0.1)
    peak = 1 / (0.1 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(
        curve.mean, torch.tensor([0.3 * peak, 0, 0.7 * peak], dtype=DOUBLE), rtol=1e-9, atol=1e-9
    )
    assert float(curve.error.max()) < 1e-9
    whole = spectral_density(symmetric(like_a_network()), 40, 3).density()
    assert float(torch.trapezoid(whole.mean, whole.grid)) == pytest.approx(1, abs=1e-3)
    assert float(whole.error.max()) > 0
    with pytest.raises(MeasureError, match="sigma is 0"):
        found.density(grid, 0.0)


def test_densities_of_nothing_and_of_float32():
    flat_one = spectral_density(torch.zeros(20, 20), steps=5, probes=2)
    assert (flat_one.largest, flat_one.negative_share.high) == (0, 0)
    assert float(flat_one.density().mean.sum()) > 0
    rounded = spectral_density(symmetric(like_a_network()).float(), 40, 4)
    exact = spectral_density(symmetric(like_a_network()), 40, 4)
    assert rounded.largest == pytest.approx(exact.largest, rel=1e-5)
    assert rounded.smallest == pytest.approx(exact.smallest, rel=1e-4)
    assert rounded.negative_share.low <= 4 / 300 <= rounded.negative_share.high


def test_densities_that_make_no_sense():
    with pytest.raises(MeasureError, match="probes is 1; an error bar needs at least 2"):
        spectral_density(torch.eye(3), probes=1)
    with pytest.raises(MeasureError, match="steps is 0"):
        spectral_density(torch.eye(3), steps=0)


@pytest.mark.slow
def test_density_of_a_network():
    """Operator and quadrature together, beside the exact spectrum."""
    matrix = network_curvature()
    exact, found = spectrum(matrix), spectral_density(matrix, steps=matrix.shape[0], probes=8)
    assert isinstance(found, SpectralDensity)
    assert found.size == matrix.shape[0]
    assert found.largest == pytest.approx(exact.largest, rel=1e-9)
    assert found.smallest == pytest.approx(exact.smallest, rel=1e-9)
    assert found.negative_share.low <= exact.negative_share <= found.negative_share.high


# ---- independent libraries; they are in no environment of sparseflow's own

REFEREE = "a referee: pip install -r benchmarks/referees.txt in an environment of its own"


@pytest.fixture
def dense_network():
    """LeNet5 after a few steps on random images, so that its eigenvalues stand apart."""
    torch.manual_seed(0)
    model = build("lenet5")
    batch = torch.rand(60, 1, 28, 28), torch.randint(10, (60,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        sf.cross_entropy(model, batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, batch


@pytest.mark.filterwarnings("ignore")
def test_top_eigenvalues_against_hessian_eigenthings(dense_network):
    theirs = pytest.importorskip("hessian_eigenthings", reason=REFEREE)
    model, batch = dense_network
    operator = theirs.HessianOperator(model, [batch], sf.cross_entropy)
    expected = theirs.lanczos(
        operator, k=10, max_iter=60, which="LA", seed=0, reorthogonalize=True
    ).eigenvalues
    found = eigenvalues(hessian(model, sf.cross_entropy, batch, chunk=20), 10)
    torch.testing.assert_close(found.values, expected.double(), rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_top_eigenvalues_against_pyhessian(dense_network):
    theirs = pytest.importorskip("pyhessian", reason=REFEREE)
    model, batch = dense_network
    found = eigenvalues(hessian(model, sf.cross_entropy, batch), 3, "LM")
    made = theirs.hessian(model, functional.cross_entropy, data=batch, cuda=False)
    expected, _ = made.eigenvalues(maxIter=300, tol=1e-5, top_n=3)
    order = sorted(expected, reverse=True)
    torch.testing.assert_close(found.values, torch.tensor(order).double(), rtol=1e-2, atol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "name"), [(hessian, "HessianLinearOperator"), (gauss_newton, "GGNLinearOperator")]
)
def test_products_against_curvlinops(dense_network, make, name):
    theirs = pytest.importorskip("curvlinops", reason=REFEREE)
    model, batch = dense_network
    ours = make(model, sf.cross_entropy, batch, chunk=20)
    v = torch.randn(ours.shape[0])
    operator = getattr(theirs, name)(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [batch], check_deterministic=False
    )
    torch.testing.assert_close(ours @ v, operator @ v, rtol=1e-3, atol=1e-5)
