"""The gain of an ensemble over its members, against a loop over examples."""

import math
import statistics

import pytest
import torch

from sparseflow.studies.agreement import ensemble_record


def test_the_gain_has_the_standard_error_of_a_mean_over_examples() -> None:
    stream = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (50,), generator=stream)
    logits = [torch.randn(50, 3, generator=stream) for _ in range(3)]
    gains = []
    for i, label in enumerate(truth.tolist()):
        mean = sum(member[i].double().softmax(0) for member in logits)
        right = [int(member[i].argmax()) == label for member in logits]
        gains.append(100 * ((int(mean.argmax()) == label) - sum(right) / 3))
    found = ensemble_record(logits, truth)
    assert found.gain == pytest.approx(statistics.fmean(gains), rel=1e-4)
    assert found.error == pytest.approx(statistics.stdev(gains) / math.sqrt(50), rel=1e-4)
    assert found.size == 3
