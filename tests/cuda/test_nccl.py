"""Data parallel training over NCCL, with the one rank that one GPU has room for."""

from collections.abc import Iterator

import pytest
import torch
from helpers.small import batch, loss, network
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import sparseflow as sf
from sparseflow.core.parallel import Ranks


@pytest.fixture
def group(gpu: torch.device) -> Iterator[torch.device]:
    torch.cuda.set_device(gpu)
    store = distributed.HashStore()
    distributed.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=gpu)
    yield gpu
    distributed.destroy_process_group()


def test_masks_are_those_of_one_process(group: torch.device) -> None:
    digests = []
    for parallel in (True, False):
        net = network(torch.float64).to(group)
        masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
        model = DistributedDataParallel(net, device_ids=[group.index]) if parallel else net
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        topology = sf.attach(model, optimizer, masks, sf.RigL(sf.every(2), sf.constant(0.5)))
        for step in range(6):
            optimizer.zero_grad()
            loss(model, tuple(t.to(group) for t in batch(step, torch.float64))).backward()
            optimizer.step()
        digests.append(topology.masks.digest())
    assert digests[0] == digests[1]


def test_ranks_exchange_what_is_on_the_device(group: torch.device) -> None:
    """One rank has nothing to exchange: the group is used by hand."""
    ranks = Ranks(2, 0, distributed.group.WORLD)
    tensor = torch.ones(3, device=group, dtype=torch.bfloat16)
    assert torch.equal(ranks.mean(tensor), tensor / 2)
    assert ranks.first(True, group) is True
