"""CUDA graphs: masks that stay are replayed, masks that change are refused."""

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from helpers.small import batch, loss, network
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.core.errors import TopologyError
from sparseflow.topology import Topology

WARM = 3
pytestmark = pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")


def made(
    device: torch.device, method: sf.Method
) -> tuple[nn.Module, torch.optim.Optimizer, Topology]:
    net = network().to(device)
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, capturable=True)
    return net, optimizer, sf.attach(net, optimizer, masks, method)


def stepper(
    net: nn.Module, optimizer: torch.optim.Optimizer, examples: tuple[Tensor, ...]
) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(net, examples).backward()
        optimizer.step()

    return step


def captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Warm up on another stream, as graphs want it, and capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def examples(device: torch.device, step: int = 0) -> tuple[Tensor, ...]:
    return tuple(t.to(device) for t in batch(step))


def test_masks_that_stay_are_replayed(gpu: torch.device) -> None:
    net, optimizer, topology = made(gpu, sf.Static())
    static = examples(gpu)
    graph = captured(stepper(net, optimizer, static))
    for step in range(WARM, 10):
        for tensor, new in zip(static, examples(gpu, step), strict=True):
            tensor.copy_(new)
        graph.replay()
    other, plain, _ = made(gpu, sf.Static())
    for step in (*[0] * WARM, *range(WARM, 10)):
        stepper(other, plain, examples(gpu, step))()
    for name, mask in topology.masks.items():
        assert not net.get_parameter(name)[~mask].any()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_graph_replays_the_masks_that_were_loaded_after_its_capture(gpu: torch.device) -> None:
    net, optimizer, topology = made(gpu, sf.Static())
    graph = captured(stepper(net, optimizer, examples(gpu)))
    masks = sf.make_masks(sf.maskable(net), 0.2, seed=7)
    topology.load_state_dict(topology.state_dict() | {"masks": dict(masks.items())})
    graph.replay()
    for name, mask in masks.items():
        assert not net.get_parameter(name)[~mask].any()
        assert net.get_parameter(name)[mask].any()


@pytest.mark.parametrize("method", [sf.SET(), sf.RigL(), sf.GradualPruning(0.1)])
def test_masks_that_change_are_refused(method: sf.Method, gpu: torch.device) -> None:
    net, optimizer, _ = made(gpu, method)
    with pytest.raises(TopologyError, match=f"{type(method).__name__} changes masks, and a capt"):
        captured(stepper(net, optimizer, examples(gpu)))


def test_masks_change_around_graphs_of_forward_and_backward_alone(gpu: torch.device) -> None:
    net, optimizer, topology = made(gpu, sf.RigL(sf.every(2), sf.constant(0.5)))
    inputs, _ = examples(gpu)
    graphed = torch.cuda.make_graphed_callables(net, (inputs,))
    for step in range(6):
        optimizer.zero_grad()
        loss(graphed, examples(gpu, step)).backward()
        optimizer.step()
    assert topology.updates == 3
    for name, mask in topology.masks.items():
        assert not net.get_parameter(name)[~mask].any()


@pytest.mark.parametrize("whole", [True, False], ids=["step", "backward"])
def test_a_capture_is_noticed_without_a_gpu(whole: bool) -> None:
    """As above, with what PyTorch says of streams put in by hand."""
    net = network()
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    topology = sf.attach(net, optimizer, masks, sf.SET())
    capturing = mock.patch("torch.cuda.is_current_stream_capturing", return_value=True)
    on_gpu = mock.patch.object(torch.Tensor, "is_cuda", True)
    noticing = optimizer.step if whole else loss(net, batch(0)).backward
    with capturing, on_gpu, pytest.raises(TopologyError, match=r"SET changes .* Static\(\)"):
        noticing()
    assert topology.step == 0


def test_loaded_masks_take_the_memory_of_those_before() -> None:
    """What a captured graph reads; the same on the CPU."""
    net = network()
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    topology = sf.attach(net, optimizer, masks, sf.Static())
    before = [m for w in topology._weights.values() for _, m in w.products([])]
    other = sf.make_masks(sf.maskable(net), 0.2, seed=7)
    topology.load_state_dict(topology.state_dict() | {"masks": dict(other.items())})
    for held, mask in zip(before, other.values(), strict=True):
        assert torch.equal(held.bool(), mask)
