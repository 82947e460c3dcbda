"""The kernels of sparse convolutions against float64 autograd."""

import pytest
import torch
from helpers.kernels import assert_within, csr, threads
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from torch.nn import functional

from sparseflow.core.errors import KernelError, SparseUnavailable
from sparseflow.sparse.kernels.blocked import block, unblock
from sparseflow.sparse.kernels.conv import ConvPattern
from sparseflow.sparse.kernels.library import core

INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=["v4", "v3", "portable"])
def best(request):
    """Each level that the machine runs."""
    before = core().level
    try:
        core().set_level(request.param)
    except SparseUnavailable as error:
        pytest.skip(str(error))
    yield
    core().set_level(before)


def exact(weight, bias, x, dy, how):
    """Output, its three gradients, and the same of all absolutes, in float64."""
    results = []
    for change in (lambda t: t.double(), lambda t: t.double().abs()):
        tensors = [change(t).requires_grad_() for t in (x, weight, bias)]
        y = functional.conv2d(*tensors, **how)
        y.backward(change(dy))
        results.append([y.detach(), *(t.grad for t in tensors)])
    return zip(*results, strict=True)


class Case:
    """A random convolution; ``how``: stride, padding, dilation, groups."""

    def __init__(self, shape, size, n, density, how):
        self.n, self.size, self.how = n, size, how
        self.mask = torch.rand(shape) < density
        self.weight = torch.randn(shape) * self.mask
        self.values, self.bias = self.weight[self.mask], torch.randn(shape[0])
        self.pattern = ConvPattern(*csr(self.mask.flatten(1)), shape, **how)
        self.x = torch.randn(n, shape[1] * how["groups"], *size)
        self.dy = torch.randn(n, shape[0], *self.pattern.output_size(size))

    def run(self):
        """Output, input gradient, gradients of values and bias, all blocked."""
        x, dy = block(self.x), block(self.dy)
        return (
            self.pattern.forward(self.values, self.bias, x),
            self.pattern.input_gradient(self.values, dy, self.size),
            *self.pattern.weight_gradient(x, dy, bias=True),
        )

    def check(self):
        y, dx, dvalues, dbias = self.run()
        of = exact(self.weight, self.bias, self.x, self.dy, self.how)
        (ey, ay), (edx, adx), (edw, adw), (edb, adb) = of
        terms = self.mask.numel() + self.dy[:, 0].numel()
        assert_within(unblock(y, self.n), ey, ay, terms)
        assert_within(unblock(dx, self.n), edx, adx, terms)
        assert_within(dvalues, edw[self.mask], adw[self.mask], terms)
        assert_within(dbias, edb, adb, terms)
        x = block(self.x)
        plain = self.pattern.forward(self.values, None, x)
        zero = torch.zeros_like(self.bias)
        assert torch.equal(plain, self.pattern.forward(self.values, zero, x))
        assert torch.equal(self.pattern.forward(self.values, self.bias, x, True), y.relu())


def plain(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def cases(draw, most=4):
    """What a case is made of; ``most``: channels of a group."""
    groups, kernel = draw(st.sampled_from([1, 1, 2, 3])), draw(st.tuples(*[st.integers(1, 5)] * 2))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    how = plain(draw(pairs), padding, draw(pairs), groups)
    least = [
        max(1, d * (k - 1) + 1 - 2 * p)
        for d, k, p in zip(how["dilation"], kernel, padding, strict=True)
    ]
    size = (least[0] + draw(st.integers(0, 12)), least[1] + draw(st.integers(0, 24)))
    channels = st.integers(1, most)
    shape = (groups * draw(channels), draw(channels), *kernel)
    density = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    return shape, size, draw(st.integers(0, 50)), density, how


@options(max_examples=100)
@given(parts=cases())
def test_kernels_are_right_for_any_convolution(parts):
    Case(*parts).check()


@options(max_examples=50)
@given(parts=cases(most=60))
def test_kernels_are_right_for_many_channels(parts):
    Case(*parts).check()


@pytest.mark.parametrize(
    ("shape", "size", "n", "density", "how"),
    [
        ((6, 1, 5, 5), (28, 28), 33, 0.3, plain()),
        ((16, 6, 5, 5), (12, 12), 16, 0.1, plain()),
        ((5, 7, 3, 3), (8, 8), 20, 0.2, plain(padding=(1, 1))),
        ((8, 40, 3, 3), (9, 70), 3, 0.05, plain(padding=(1, 1))),  # more than one band
        ((6, 6, 3, 3), (64, 64), 33, 0.1, plain(padding=(1, 1))),  # beyond the caches
        ((8, 80, 3, 3), (11, 150), 1, 0.05, plain((2, 2), (1, 1))),  # packed, in columns too
        ((4, 3, 7, 7), (40, 40), 17, 0.2, plain((2, 2), (3, 3))),
        ((9, 8, 1, 1), (7, 7), 40, 0.5, plain((2, 2))),
        ((12, 1, 3, 3), (14, 13), 16, 0.6, plain(padding=(1, 1), groups=12)),
        ((3, 2, 15, 15), (15, 16), 5, 0.1, plain(padding=(7, 7))),
        ((3, 2, 2, 4), (1, 2), 200, 0.9, plain(padding=(1, 3))),  # by batch blocks
        ((2, 2, 3, 3), (3, 4), 9, 1.0, plain(padding=(9, 20))),  # hardly more than padding
        ((3, 2, 3, 2), (30, 9), 2, 0.7, plain((1, 4), (2, 0), (9, 5))),
        ((70, 30, 3, 3), (4, 4), 64, 0.9, plain(padding=(1, 1))),  # too many sums to keep
        ((16, 16, 5, 5), (32, 32), 1, 0.4, plain(padding=(32, 32), dilation=(16, 16))),
        ((52, 52, 3, 5), (8, 24), 27, 0.3, plain((2, 3), (0, 3), (2, 3))),  # twelve outputs
        ((2, 1, 15, 15), (8, 8), 1, 0.4, plain(padding=(21000,) * 2, dilation=(3000,) * 2)),
    ],
)
@pytest.mark.usefixtures("best")
def test_kernels_are_right_at_every_level(shape, size, n, density, how):
    Case(shape, size, n, density, how).check()


@pytest.mark.parametrize(
    ("shape", "size", "n", "density", "how"),
    [
        ((20, 60, 3, 3), (8, 8), 33, 0.5, plain(padding=(1, 1))),
        ((20, 61, 3, 3), (17, 23), 5, 0.3, plain(padding=(1, 1))),  # ragged tiles
        ((11, 64, 5, 5), (14, 13), 20, 0.4, plain(padding=(2, 2))),
        ((50, 64, 3, 3), (15, 16), 20, 0.9, plain((2, 1), (1, 1))),
        ((30, 64, 3, 3), (16, 16), 20, 0.4, plain(padding=(1, 0), dilation=(2, 1))),
        ((33, 90, 1, 1), (6, 9), 20, 0.9, plain()),
        ((30, 14, 3, 3), (9, 8), 40, 0.9, plain(padding=(1, 1))),  # one part
        ((300, 14, 3, 3), (9, 8), 5, 0.9, plain(padding=(1, 1))),  # and many sums
        ((200, 200, 3, 3), (6, 8), 4, 0.5, plain(padding=(1, 1))),  # some output channels a time
    ],
)
@pytest.mark.usefixtures("best")
def test_kernels_are_right_where_sources_stay_near(shape, size, n, density, how):
    case = Case(shape, size, n, density, how)
    case.check()
    if core().level == "v4":  # one start for each part and output channel
        starts, _, _ = case.pattern.taps(size, backward=False)
        assert len(starts) % shape[0] == 1
        assert len(starts) != case.mask[0, 0].numel() * shape[0] + 1 or case.mask[0, 0].numel() == 1
    results = [case.run()]
    for count in (1, 2, 5):
        with threads(count):
            results.append(case.run())
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@options(max_examples=25)
@given(parts=cases())
def test_results_do_not_depend_on_the_number_of_threads(parts):
    case, results = Case(*parts), []
    for count in (1, 2, 5):
        with threads(count):
            results.append(case.run())
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.usefixtures("best")
def test_one_pattern_serves_every_level():
    case = Case((20, 60, 3, 3), (8, 8), 16, 0.5, plain(padding=(1, 1)))
    for level in (core().level, "portable", core().level):
        core().set_level(level)
        case.check()


def test_one_pattern_serves_many_sizes_and_batches():
    case = Case((4, 3, 3, 3), (8, 8), 16, 0.5, plain((2, 1), (1, 1)))
    first = case.run()
    for size in ((5, 9), (8, 8)):
        for n in (1, 40):
            other = Case((4, 3, 3, 3), size, n, 0.5, case.how)
            other.pattern, other.mask = case.pattern, case.mask
            other.weight, other.values, other.bias = case.weight, case.values, case.bias
            other.check()
    assert all(map(torch.equal, first, case.run()))


def test_taps_are_made_on_the_cpu_whatever_the_default_device():
    case = Case((20, 60, 3, 3), (8, 8), 16, 0.5, plain(padding=(1, 1)))
    with torch.device("meta"):
        made = case.pattern.taps((8, 8), backward=False), case.pattern.taps((8, 8), backward=True)
    assert all(table.device.type == "cpu" for taps in made for table in taps)
    case.check()


def test_a_gradient_that_is_not_contiguous_is_read_right():
    case = Case((4, 3, 3, 3), (6, 6), 16, 0.5, plain())
    x, dy = block(case.x), block(case.dy)
    strided = dy.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    for a, b in ((dy, strided), (dy[:, :, :1, :1].expand_as(dy), dy[:, :, :1, :1].expand_as(dy))):
        assert torch.equal(
            case.pattern.input_gradient(case.values, a.contiguous(), case.size),
            case.pattern.input_gradient(case.values, b, case.size),
        )
        assert torch.equal(
            case.pattern.weight_gradient(x, a.contiguous(), bias=False)[0],
            case.pattern.weight_gradient(x, b, bias=False)[0],
        )


@pytest.mark.parametrize("how", [plain(padding=(1, 1)), plain((2, 2), (1, 1))])
def test_what_is_not_finite_stays_where_it_belongs(how):
    case = Case((4, 3, 3, 3), (9, 20), 32, 0.5, how)
    case.x[3, 1, 4, 0], case.x[20, 0, 0, 7] = NAN, INF
    y = unblock(case.pattern.forward(case.values, case.bias, block(case.x)), case.n)
    reference = functional.conv2d(
        case.x.nan_to_num(5, 5), case.weight, case.bias, how["stride"], how["padding"]
    )
    touched = functional.conv2d(
        (~case.x.isfinite()).double(), case.mask.double(), None, how["stride"], how["padding"]
    )
    assert not y[touched > 0].isfinite().any()
    assert torch.allclose(y[touched == 0], reference[touched == 0], atol=1e-5)


def test_relu_passes_nan_on():
    case = Case((4, 3, 3, 3), (6, 6), 16, 1.0, plain())
    y = case.pattern.forward(case.values, case.bias * NAN, block(case.x), relu=True)
    assert y.isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_shape": (4, 3, 3)}, r"weight_shape must be \(out, in / groups, kh, kw\)"),
        ({"weight_shape": (4, 3, 0, 3)}, r"is \(4, 3, 0, 3\)"),
        ({"weight_shape": (4, 3, 16, 3)}, r"at most 15 positions along an axis, not \(16, 3\)"),
        ({"weight_shape": (5, 3, 3, 3)}, "row_pointers must have 6 entries .* has 5"),
        ({"weight_shape": (4, 2, 3, 3)}, "has a column outside of 0 to 17"),
        ({"stride": (0, 1)}, r"strides and dilations of at least 1 .* has \(0, 1\)"),
        ({"padding": (0, -1)}, "paddings of at least 0"),
        ({"dilation": (1, 0)}, "dilations of at least 1"),
        ({"groups": 3}, "4 output channels do not divide into 3 groups"),
        ({"groups": 0}, "into 0 groups"),
        ({"columns": torch.arange(108).int()}, "row pointers end at 108|strictly|outside"),
    ],
)
def test_a_pattern_that_is_none_is_refused(change, message):
    pointers, columns = csr(torch.ones(4, 27, dtype=torch.bool))
    good = {"row_pointers": pointers, "columns": columns, "weight_shape": (4, 3, 3, 3)}
    ConvPattern(**good)
    with pytest.raises(KernelError, match=message):
        ConvPattern(**good | change)


def test_tensors_that_do_not_fit_are_refused():
    case = Case((4, 3, 3, 3), (6, 6), 16, 0.5, plain())
    pattern, values, x, dy = case.pattern, case.values, block(case.x), block(case.dy)
    for bad, message in (
        (lambda: pattern.forward(values[1:], None, x), "values must have shape"),
        (lambda: pattern.forward(values, case.bias[1:], x), "bias must have shape"),
        (lambda: pattern.forward(values, None, x[:, 1:]), "x must have shape"),
        (lambda: pattern.forward(values, None, x[:, :, :2]), "too small for a kernel"),
        (lambda: pattern.input_gradient(values, dy, (7, 6)), "dy must have shape"),
        (lambda: pattern.input_gradient(values, dy, (2, 6)), "too small for a kernel"),
        (lambda: pattern.weight_gradient(x, dy[:, :, 1:], True), "dy must have shape"),
        (lambda: pattern.taps((30_000, 30_000), backward=False), "too large"),
    ):
        with pytest.raises(KernelError, match=message):
            bad()


@pytest.mark.parametrize("of", ["double", "meta", "sparse"])
def test_other_kinds_of_tensors_are_refused(of):
    case = Case((4, 3, 3, 3), (6, 6), 16, 0.5, plain())
    change = {
        "double": lambda t: t.double(),
        "meta": lambda t: t.to("meta"),
        "sparse": lambda t: t.to_sparse(),
    }[of]
    with pytest.raises(Exception, match=r"float32|CPU|Float32"):
        case.pattern.forward(case.values, None, change(block(case.x)))


def test_an_index_out_of_order_is_refused():
    pointers, columns = csr(torch.ones(2, 9, dtype=torch.bool))
    columns[3], columns[4] = 4, 3
    with pytest.raises(KernelError, match="row 0 are not strictly ascending"):
        ConvPattern(pointers, columns, (2, 1, 3, 3))
