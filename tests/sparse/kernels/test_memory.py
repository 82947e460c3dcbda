"""The memory of large results: when it is used again, and when it must not be."""

import copy
import threading

import pytest
import torch

from sparseflow.sparse.kernels.blocked import block, relu_gradient, unblock
from sparseflow.sparse.kernels.memory import LARGE, POOL, Pool

SHAPE = (4, LARGE // 64, 16)  # four times as large as is needed


@pytest.fixture
def pool():
    return Pool(capacity=10 * LARGE)


def test_a_buffer_is_used_again_once_nothing_shares_it(pool):
    first = pool.empty(SHAPE)
    at, view = first.data_ptr(), first[1:].flatten()
    assert (first.shape, first.dtype, first.is_contiguous()) == (SHAPE, torch.float32, True)
    del first
    assert pool.unused == 0
    assert pool.empty(SHAPE).data_ptr() != at
    view.fill_(1.0)
    del view
    assert pool.empty((LARGE,)).data_ptr() == at  # the same bytes in another shape


def test_unused_memory_is_bounded_and_the_oldest_goes_first(pool):
    tensors = [pool.empty(SHAPE) for _ in range(4)]
    assert pool.unused == 0
    last = tensors[-1].data_ptr()
    while tensors:
        tensors.pop(0)
        assert pool.unused <= 10 * LARGE
    assert pool.unused == 8 * LARGE
    assert pool.empty(SHAPE).data_ptr() == last


def test_a_buffer_larger_than_the_bound_is_not_kept():
    pool = Pool(capacity=LARGE)
    del (tensor := [pool.empty(SHAPE)])[0]
    assert not tensor
    assert pool.unused == 0


def test_small_results_are_torch_s_own(pool):
    small = pool.empty((LARGE // 4 - 1,))
    assert small.untyped_storage().resizable()
    del small
    assert pool.unused == 0


def test_what_autograd_has_saved_is_not_written_over(pool):
    x = pool.empty(SHAPE).fill_(2.0).requires_grad_()
    y = (x * 3.0).exp()
    expected = y.detach() * 3.0
    at = x.data_ptr()
    y.sum().backward()
    others = [pool.empty(SHAPE).fill_(float("nan")) for _ in range(3)]
    assert torch.equal(x.grad, expected)
    assert (x == 2.0).all()
    del x, y
    assert at in [pool.empty(SHAPE).data_ptr(), *(other.data_ptr() for other in others)]


def test_copies_and_changes_in_place_are_as_of_any_tensor(pool):
    tensor = pool.empty(SHAPE).zero_()
    twin = copy.deepcopy(tensor)
    tensor.add_(1.0).clamp_(max=0.5).resize_(16)
    assert twin.sum() == 0
    assert tensor.tolist() == [0.5] * 16
    torch.testing.assert_close(torch.zeros(3).set_(tensor), tensor)
    with pytest.raises(RuntimeError, match="not resizable"):
        tensor.resize_(10 * LARGE)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_the_default_type_and_device_do_not_matter(pool, kind):
    torch.set_default_dtype(kind)
    try:
        with torch.device("meta"):
            tensor = pool.empty(SHAPE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tensor.dtype, tensor.device.type) == (torch.float32, "cpu")


def test_threads_never_get_the_same_buffer(pool):
    wrong = []

    def work(number):
        for turn in range(50):
            tensor = pool.empty((LARGE // 4 * (1 + turn % 2),)).fill_(number)
            wrong.extend([] if bool((tensor == number).all()) else [number])

    workers = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert pool.unused <= 10 * LARGE


def test_the_kernels_take_their_large_results_from_the_pool():
    x = torch.randn(64, LARGE // 256)
    blocked = block(x)
    at = blocked.data_ptr()
    assert torch.equal(unblock(blocked, 64), x)
    del blocked
    assert POOL.unused >= LARGE
    first = block(x)
    assert first.data_ptr() == at
    assert torch.equal(unblock(relu_gradient(block(x.abs()), first), 64), x.abs() * (x > 0))
