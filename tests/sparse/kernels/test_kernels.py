"""The kernels of linear layers, layout and pooling against float64, and the core's loading."""

import shutil

import pytest
import torch
from helpers.kernels import assert_within, csr, threads
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from torch.nn import functional

from sparseflow.core.errors import KernelError, SparseUnavailable
from sparseflow.sparse.kernels import library
from sparseflow.sparse.kernels.blocked import block, relu_gradient, unblock
from sparseflow.sparse.kernels.library import Core, core, describe
from sparseflow.sparse.kernels.linear import LinearPattern
from sparseflow.sparse.kernels.pool import max_pool, max_pool_gradient

INF, NAN = float("inf"), float("nan")


def pattern_of(mask):
    return LinearPattern(*csr(mask), mask.shape[1])


def check_linear(out, inputs, n, density, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(out, inputs, generator=draw) < density
    weight = torch.randn(out, inputs, generator=draw) * mask
    bias = torch.randn(out, generator=draw)
    x, dy = torch.randn(n, inputs, generator=draw), torch.randn(n, out, generator=draw)
    pattern, values, xb, db = pattern_of(mask), weight[mask], block(x), block(dy)
    w64, x64, dy64 = weight.double(), x.double(), dy.double()

    y = unblock(pattern.forward(values, bias, xb), n)
    exact = x64 @ w64.T + bias.double()
    assert_within(y, exact, x64.abs() @ w64.T.abs() + bias.abs(), inputs)
    assert torch.equal(unblock(pattern.forward(values, bias, xb, relu=True), n), y.relu())
    plain = unblock(pattern.forward(values, None, xb), n)
    assert_within(plain, x64 @ w64.T, x64.abs() @ w64.T.abs(), inputs)
    if n:
        one = pattern.single(values, bias, x[0])
        assert_within(one, exact[0], x64[0].abs() @ w64.T.abs() + bias.abs(), inputs)
        assert torch.equal(pattern.single(values, bias, x[0], relu=True), one.relu())
    dx = unblock(pattern.input_gradient(values, db), n)
    assert_within(dx, dy64 @ w64, dy64.abs() @ w64.abs(), out)
    dvalues, dbias = pattern.weight_gradient(xb, db, bias=True)
    assert_within(dvalues, (dy64.T @ x64)[mask], (dy64.abs().T @ x64.abs())[mask], n)
    assert_within(dbias, dy64.sum(0), dy64.abs().sum(0), n)
    assert pattern.weight_gradient(xb, db, bias=False)[1] is None


# ---- Linear layers

sizes = st.integers(0, 70)
densities = st.sampled_from([0.0, 0.03, 0.3, 0.8, 1.0])


@options(max_examples=40)
@given(out=sizes, inputs=sizes, n=sizes, density=densities, seed=st.integers(0, 99))
def test_linear_kernels_are_right_for_any_shape_density_and_batch(out, inputs, n, density, seed):
    check_linear(out, inputs, n, density, seed)


@pytest.mark.parametrize(
    ("out", "inputs", "n", "density"),
    [(300, 784, 16, 0.2), (1100, 300, 35, 0.04), (30, 2100, 100, 0.01), (600, 700, 129, 0.5)],
)
def test_linear_kernels_are_right_over_many_blocks_and_panels(level, out, inputs, n, density):
    check_linear(out, inputs, n, density)


@options(max_examples=20)
@given(out=st.integers(0, 300), inputs=st.integers(0, 600), n=st.integers(0, 80), density=densities)
def test_results_do_not_depend_on_the_number_of_threads(out, inputs, n, density):
    mask = torch.rand(out, inputs) < density
    pattern, values = pattern_of(mask), torch.randn(int(mask.sum()))
    x, dy, bias = torch.randn(n, inputs), torch.randn(n, out), torch.randn(out)
    image, ones = torch.randn(n, 2, 7, 6), torch.ones(inputs)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            xb, db = block(x), block(dy)
            y, index = max_pool(block(image), (3, 2), (2, 1), (1, 0))
            results.append([
                xb, db, unblock(xb, n), pattern.single(values, bias, ones),
                pattern.forward(values, bias, xb, relu=True),
                pattern.input_gradient(values, db),
                *pattern.weight_gradient(xb, db, bias=True),
                y, index, max_pool_gradient(y, index, (7, 6), (3, 2), (2, 1), (1, 0)),
                relu_gradient(y, y),
            ])  # fmt: skip
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_rows_and_columns_without_a_weight_are_right(level):
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[3, 7] = mask[3, 8] = mask[39, 0] = True
    pattern, values = pattern_of(mask), torch.tensor([2.0, 3.0, 5.0])
    x = torch.arange(50.0).repeat(17, 1)
    y = unblock(pattern.forward(values, torch.ones(40), block(x)), 17)
    assert y[16, 3] == 1 + 2 * 7 + 3 * 8
    assert (y[:, [0, 2, 4, 39]] == 1).all()
    dx = unblock(pattern.input_gradient(values, block(torch.ones(17, 40))), 17)
    assert dx[5].nonzero().flatten().tolist() == [0, 7, 8]


def test_padded_examples_do_not_count():
    pattern, x = pattern_of(torch.ones(1, 1, dtype=torch.bool)), block(torch.ones(3, 1))
    y = pattern.forward(torch.ones(1), torch.ones(1), x)
    assert y.flatten().tolist() == [2.0] * 3 + [1.0] * 13  # of no harm: their gradient is 0
    dvalues, dbias = pattern.weight_gradient(x, block(torch.ones(3, 1)), bias=True)
    assert dvalues.tolist() == dbias.tolist() == [3.0]


def test_relu_keeps_a_nan_and_infinities_pass(level):
    pattern = pattern_of(torch.ones(1, 1, dtype=torch.bool))
    x = block(torch.tensor([[NAN], [INF], [-INF], [-1.0], [2.0]]))
    y = unblock(pattern.forward(torch.ones(1), None, x, relu=True), 5).flatten()
    torch.testing.assert_close(y, torch.tensor([NAN, INF, 0.0, 0.0, 2.0]), equal_nan=True)


@given(out=st.integers(0, 40), inputs=st.integers(0, 40), density=densities)
def test_the_transposed_topology_lists_every_weight_once(out, inputs, density):
    mask = torch.rand(out, inputs) < density
    pattern = pattern_of(mask)
    starts, rows, order = pattern.transposed
    place = torch.arange(len(rows))
    columns = torch.searchsorted(starts, place.int(), right=True) - 1
    assert starts[0] == 0
    assert starts[-1] == pattern.nnz == len(rows)
    assert torch.equal(order.sort().values, place.int())
    assert torch.equal(pattern.columns[order.long()].long(), columns % max(1, inputs))
    assert mask[rows.long(), columns].all()


# ---- Layout


@given(n=st.integers(0, 40), shape=st.lists(st.integers(0, 20), min_size=1, max_size=3))
def test_block_puts_examples_innermost_and_unblock_takes_them_back(n, shape):
    x = torch.randn(n, *shape)
    blocked = block(x)
    padded = torch.cat([x, torch.zeros(-n % 16, *shape)])
    assert torch.equal(blocked, padded.unflatten(0, (-1, 16)).movedim(1, -1))
    assert torch.equal(unblock(blocked, n), x)


def test_layout_of_many_features(level):
    x = torch.randn(35, 9001)
    assert torch.equal(block(x)[2, :, 2], x[34])
    assert torch.equal(unblock(block(x), 35), x)


def test_a_tensor_that_is_not_contiguous_is_copied_first():
    mask = torch.rand(6, 5) < 0.5
    pattern, values = pattern_of(mask), torch.randn(int(mask.sum()))
    wide = torch.randn(4, 6, 32)
    assert torch.equal(
        pattern.input_gradient(values, wide[..., ::2]),
        pattern.input_gradient(values, wide[..., ::2].contiguous()),
    )
    same = torch.randn(1, 6, 1).expand(4, 6, 16)
    assert torch.equal(
        pattern.input_gradient(values, same),
        pattern.input_gradient(values, same.clone()),
    )
    x = torch.randn(7, 20).T
    assert torch.equal(unblock(block(x), 20), x)


# ---- Pooling and ReLU

pools = st.tuples(
    st.tuples(st.integers(1, 5), st.integers(1, 5)), st.tuples(st.integers(1, 4), st.integers(1, 4))
)


def check_pool(x, kernel, stride, padding):
    leaf = x.clone().requires_grad_()
    expected = functional.max_pool2d(leaf, kernel, stride, padding)
    y, index = max_pool(block(x), kernel, stride, padding)
    n, size = len(x), (x.shape[2], x.shape[3])
    assert torch.equal(unblock(y, n).nan_to_num(7e8), expected.detach().nan_to_num(7e8))
    dy = torch.randint(-9, 9, expected.shape).float()  # sums of integers are exact
    expected.backward(dy)
    dx = max_pool_gradient(block(dy), index, size, kernel, stride, padding)
    assert torch.equal(unblock(dx, n), leaf.grad)


@given(pool=pools, h=st.integers(5, 12), w=st.integers(5, 12), data=st.data())
def test_pooling_is_that_of_torch_with_ties_and_nan(pool, h, w, data):
    kernel, stride = pool
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    x = torch.randint(0, 4, (18, 2, h, w)).float()
    x[x == 3] = data.draw(st.sampled_from([NAN, -INF, INF, 3.0]))
    check_pool(x, kernel, stride, padding)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 2)])
def test_pooling_of_quarters(level, size):
    check_pool(torch.randint(0, 3, (33, 3, *size)).float(), (2, 2), (2, 2), (0, 0))
    check_pool(torch.full((1, 1, *size), -INF), (2, 2), (2, 2), (0, 0))


def test_the_largest_kernel_has_a_place_for_every_tap(level):
    x = torch.zeros(1, 1, 15, 15)
    x[0, 0, 14, 14] = 1
    assert max_pool(block(x), (15, 15), (1, 1))[1].max() == 15 * 15 - 1


def test_the_gradient_of_relu_passes_where_the_output_is_positive(level):
    y = torch.tensor([-1.0, 0.0, 2.0, NAN] * 12).reshape(1, 3, 16)
    dy = torch.randn(1, 3, 16)
    expected = torch.where(y <= 0, 0, dy)
    assert torch.equal(relu_gradient(dy, y), expected)
    assert relu_gradient(dy, y, in_place=True).data_ptr() == dy.data_ptr()
    assert torch.equal(dy, expected)


# ---- Bad input


@pytest.mark.parametrize(
    ("pointers", "columns", "text"),
    [
        ([1, 2], [0, 1], "row pointers start at 1, not at 0"),
        ([0, 2, 1, 2], [0, 1], "row pointers decrease after row 1"),
        ([0, 1], [0, 1], "row pointers end at 1, but there are 2 columns"),
        ([0, 5], [0, 1], "row pointers end at 5, but there are 2 columns"),
        ([0, 0, 2], [0, 3], "row 1 has a column outside of 0 to 2"),
        ([0, 2], [-1, 1], "row 0 has a column outside of 0 to 2"),
        ([0, 0, 2], [1, 1], "the columns of row 1 are not strictly ascending"),
        ([0, 2], [2, 1], "the columns of row 0 are not strictly ascending"),
        ([], [], "at least one entry"),
    ],
)
def test_a_wrong_topology_is_refused(pointers, columns, text):
    with pytest.raises(KernelError, match=text):
        LinearPattern(torch.tensor(pointers).int(), torch.tensor(columns).int(), 3)


def test_tensors_that_do_not_fit_are_refused(unannotated):
    pattern, values = pattern_of(torch.ones(2, 3, dtype=torch.bool)), torch.ones(6)
    x, dy = torch.ones(2, 3, 16), torch.ones(2, 2, 16)
    with pytest.raises(KernelError, match=r"values must have shape \(6,\), has \(5,\)"):
        pattern.forward(values[:5], None, x)
    with pytest.raises(KernelError, match=r"x must have shape \(2, 3, 16\), has \(2, 2, 16\)"):
        pattern.forward(values, None, dy)
    with pytest.raises(KernelError, match=r"bias must have shape \(2,\), has \(3,\)"):
        pattern.forward(values, torch.ones(3), x)
    with pytest.raises(KernelError, match=r"x must have shape \(2, 3, 16\), has \(2, 3, 8\)"):
        pattern.forward(values, None, x[..., :8])
    with pytest.raises(KernelError, match=r"x must have shape \(3,\), has \(1, 3\)"):
        pattern.single(values, None, torch.ones(1, 3))
    with pytest.raises(KernelError, match=r"dy must have shape \(2, 2, 16\), has \(1, 2, 16\)"):
        pattern.weight_gradient(x, dy[:1], bias=False)
    with pytest.raises(KernelError, match=r"dy must have shape \(2, 2, 16\), has \(2, 3, 16\)"):
        pattern.input_gradient(values, x)
    with pytest.raises(KernelError, match=r"must be blocked.*has shape \(2, 3\)"):
        unblock(x[..., 0], 3)
    with pytest.raises(KernelError, match="n must lie in 0 to 32, the examples of x, is 33"):
        unblock(x, 33)
    with pytest.raises(KernelError, match=r"a batch \(examples, ...\), has shape \(3,\)"):
        block(torch.ones(3))
    with pytest.raises(KernelError, match=r"dy must have shape \(2, 3, 16\), has \(2, 2, 16\)"):
        relu_gradient(dy, x)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "text"),
    [
        ((16, 1), (1, 1), (0, 0), "kernels of 1 to 15"),
        ((2, 2), (0, 1), (0, 0), "strides of at least 1"),
        ((2, 2), (1, 1), (2, 0), "at most half a kernel"),
        ((3, 7), (1, 1), (0, 0), r"an image of \(6, 6\) is smaller"),
    ],
)
def test_impossible_pooling_is_refused(kernel, stride, padding, text):
    x = torch.ones(1, 1, 6, 6, 16)
    with pytest.raises(KernelError, match=text):
        max_pool(x, kernel, stride, padding)
    with pytest.raises(KernelError, match=text):
        max_pool_gradient(x, x.byte(), (6, 6), kernel, stride, padding)


def test_places_of_another_pooling_are_refused(unannotated):
    dy = torch.ones(1, 1, 3, 3, 16)
    with pytest.raises(KernelError, match=r"index must have shape \(1, 1, 3, 3, 16\)"):
        max_pool_gradient(dy, torch.zeros(1, 1, 2, 3, 16).byte(), (6, 6), (2, 2), (2, 2))
    with pytest.raises(KernelError, match=r"dy must have shape \(1, 1, 6, 6, 16\)"):
        max_pool_gradient(dy, dy.byte(), (12, 12), (2, 2), (2, 2))


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.ones(2, 3, 16).double(), "x must be a dense torch.float32 tensor on the CPU"),
        (torch.ones(2, 3, 16).half(), "is torch.float16"),
        (torch.ones(2, 3, 16, device="meta"), "on meta"),
        (torch.ones(2, 3, 16).to_sparse(), "torch.sparse_coo"),
    ],
)
def test_other_types_devices_and_layouts_are_refused(unannotated, tensor, text):
    pattern = pattern_of(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(KernelError, match=text):
        pattern.forward(torch.ones(6), None, tensor)
    with pytest.raises(KernelError, match=text):
        unblock(tensor, 3)


def test_a_topology_on_another_device_is_refused():
    pointers, columns = torch.tensor([0, 1]).int(), torch.tensor([0]).int()
    with pytest.raises(KernelError, match=r"row_pointers must be .* on meta"):
        LinearPattern(pointers.to("meta"), columns, 3)
    with pytest.raises(KernelError, match="columns must be contiguous"):
        LinearPattern(torch.tensor([0, 2]).int(), torch.arange(4).int()[::2], 3)


# ---- Loading


@pytest.fixture
def fresh(monkeypatch):
    """Load the core anew in this test, and as before after it."""
    best = core().level
    library.core.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    library.core.cache_clear()
    core().set_level(best)


def test_a_core_that_was_not_built_says_so(fresh, tmp_path):
    fresh.setattr(library, "_folders", lambda: iter([tmp_path]))
    with pytest.raises(SparseUnavailable, match="C\\+\\+ core was not built"):
        core()
    with pytest.raises(SparseUnavailable, match="masked dense execution"):
        LinearPattern(torch.tensor([0, 1]).int(), torch.tensor([0]).int(), 1)


def test_a_damaged_core_says_so(fresh, tmp_path):
    (tmp_path / "_core.so").write_bytes(b"\x7fELF, but no more")
    fresh.setattr(library, "_folders", lambda: iter([tmp_path]))
    with pytest.raises(SparseUnavailable, match=r"cannot load the core .*_core\.so"):
        core()


def test_a_core_of_another_interface_says_so(fresh, tmp_path):
    copy = shutil.copy(core().path, tmp_path / "_core.so")
    fresh.setattr(library, "ABI", 0)
    with pytest.raises(SparseUnavailable, match="has interface 3, this sparseflow needs 0"):
        Core(copy)


def test_the_level_can_be_forced(fresh):
    fresh.setenv("SPARSEFLOW_LEVEL", "portable")
    assert describe()["level"] == "portable"
    library.core.cache_clear()
    fresh.setenv("SPARSEFLOW_LEVEL", "v5")
    with pytest.raises(SparseUnavailable, match="unknown SPARSEFLOW_LEVEL 'v5'"):
        core()


def test_the_core_is_described():
    about = describe()
    assert about["level"] in about["levels"]
    assert about["levels"][-1] == "portable"
    assert about["threads"] == torch.get_num_threads()


@pytest.mark.slow
def test_one_openmp_runtime_serves_torch_and_the_core(elsewhere):
    code = """
from pathlib import Path
import torch
from sparseflow.sparse.kernels.library import core
assert core().threaded
maps = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
print(len({Path(name).resolve() for name in maps if "omp" in Path(name).name}))
"""
    assert elsewhere(code) == "1"
