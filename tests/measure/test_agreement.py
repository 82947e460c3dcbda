"""Disagreement, divergence, ensembles and calibration against hand cases and torch."""

import math

import pytest
import torch
from helpers.small import batch, network
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional

from sparseflow.core.errors import MeasureError
from sparseflow.measure.agreement import (
    Score,
    calibration,
    disagreement,
    divergence,
    ensemble,
    pairwise,
    predict,
    score,
)

DOUBLE = torch.float64


def logits(seed: int, examples: int = 20, classes: int = 4, scale: float = 3.0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return scale * torch.randn(examples, classes, generator=stream, dtype=DOUBLE)


def spread(probabilities: list[float]) -> torch.Tensor:
    """Two-class distributions with these probabilities of class 1."""
    one = torch.tensor(probabilities, dtype=DOUBLE)
    return torch.stack([1 - one, one], 1)


# ---- disagreement


def test_disagreement_by_hand():
    p, q = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0, 1, 1, 2, 0])
    assert disagreement(p, q) == 0.4
    scores = functional.one_hot(q, 3).float()
    assert disagreement(p, scores) == disagreement(scores, p.int()) == 0.4
    assert disagreement(functional.one_hot(p, 3).half(), scores) == 0.4
    assert disagreement(scores, scores) == 0.0


def test_equal_scores_count_for_the_first_class():
    assert disagreement(torch.zeros(3, 4), torch.tensor([0, 0, 1])) == pytest.approx(1 / 3)


def test_logits_and_their_softmax_agree():
    assert disagreement(logits(0), logits(0).softmax(1)) == 0.0


@given(st.permutations(range(20)), st.permutations(range(4)))
def test_neither_examples_nor_classes_have_an_order(order, names):
    p, q = logits(0), logits(1)
    a, b = (x[order][:, names] for x in (p, q))
    assert disagreement(a, b) == disagreement(p, q) == disagreement(b, a)
    assert divergence(a, b) == pytest.approx(divergence(p, q), rel=1e-12)


# ---- divergence


def test_divergence_by_hand():
    """KL((½, ½) ‖ (¼, ¾)) = ½ ln 2 + ½ ln ⅔ = ½ ln 4/3."""
    even, odd = spread([0.5]).log(), spread([0.75]).log()
    assert divergence(even, odd) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-14)
    assert divergence(odd, even) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-14
    )


def test_divergence_against_torch():
    p, q = logits(0), logits(1)
    referee = kl_divergence(Categorical(logits=p), Categorical(logits=q)).mean()
    assert divergence(p, q) == pytest.approx(float(referee), rel=1e-12)
    assert divergence(p, q) != pytest.approx(divergence(q, p), rel=0.01)
    assert divergence(p.float(), q.float()) == pytest.approx(float(referee), rel=1e-5)


def test_a_shift_of_all_logits_changes_nothing():
    p = logits(0)
    assert divergence(p, p + torch.arange(20.0)[:, None]) == pytest.approx(0.0, abs=1e-14)


def test_divergence_of_very_sure_networks_is_finite():
    """Logits that softmax rounds to 0 and 1: the difference of the logits remains."""
    sure = torch.tensor([[0.0, 5000.0]])
    assert divergence(sure, -sure) == pytest.approx(5000.0)
    assert divergence(sure, sure) == 0.0


# ---- ensembles


def test_ensemble_by_hand():
    found = ensemble([spread([0.5, 0.2]).log(), spread([0.75, 0.6]).log()])
    assert found.dtype == DOUBLE
    assert torch.allclose(found, spread([0.625, 0.4]), rtol=1e-14)


def test_members_in_any_form():
    members = [logits(i) for i in range(3)]
    found = ensemble(members)
    assert torch.equal(found, ensemble(torch.stack(members)))
    assert torch.equal(found, ensemble(dict(zip("abc", members, strict=True))))
    assert torch.allclose(found, torch.stack(members).softmax(-1).mean(0), rtol=1e-14)


def test_identical_members_are_the_member():
    member = logits(0)
    assert torch.allclose(ensemble([member] * 4), member.softmax(1), rtol=1e-14)


def test_narrow_logits_are_widened():
    narrow = [logits(i).to(torch.bfloat16) for i in range(3)]
    assert torch.equal(ensemble(narrow), ensemble([member.double() for member in narrow]))


@given(st.permutations(range(5)))
def test_members_have_no_order(order):
    members = [logits(i) for i in range(5)]
    shuffled = ensemble([members[i] for i in order])
    assert torch.allclose(shuffled, ensemble(members), rtol=1e-14)


def test_an_ensemble_is_no_worse_than_its_members_on_average():
    """The negative logarithm is convex (Jensen)."""
    members = [logits(i) for i in range(5)]
    truth = torch.arange(20) % 4
    alone = [score(member.softmax(1), truth).loss for member in members]
    assert score(ensemble(members), truth).loss < sum(alone) / 5


# ---- score and calibration


def test_calibration_by_hand():
    """Two bins in use: |1/2 − 0.7|·2 + |1 − 0.95|·2, over 4 examples."""
    p = spread([0.7, 0.3, 0.95, 0.95])
    truth = torch.tensor([1, 1, 1, 1])
    assert calibration(p, truth, bins=10) == pytest.approx((0.4 + 0.1) / 4, rel=1e-12)


def test_a_bin_holds_its_upper_edge_and_not_its_lower():
    """With four bins 0.75 and 0.6 share (½, ¾]; with five, 0.6 lies in (0.4, 0.6] alone."""
    p, truth = spread([0.75, 0.6]), torch.tensor([1, 0])
    assert calibration(p, truth, bins=4) == pytest.approx(abs(0.25 - 0.6) / 2)
    assert calibration(p, truth, bins=5) == pytest.approx((0.25 + 0.6) / 2)


def test_calibration_against_a_loop_over_bins():
    p = logits(5, examples=300, scale=1.0).softmax(1)
    truth = torch.arange(300) % 4
    confidence, predicted = (x.tolist() for x in p.max(1))
    total = 0.0
    for low in range(15):
        inside = [i for i, c in enumerate(confidence) if low / 15 < c <= (low + 1) / 15]
        right = sum(predicted[i] == int(truth[i]) for i in inside)
        total += abs(right - sum(confidence[i] for i in inside)) / 300
    assert calibration(p, truth) == pytest.approx(total, rel=1e-10)
    assert calibration(p, truth) != pytest.approx(calibration(p, truth, bins=5), rel=0.01)


def test_one_bin_is_mean_confidence_less_accuracy():
    p, truth = logits(5).softmax(1), torch.arange(20) % 4
    right = (p.argmax(1) == truth).double().mean()
    assert calibration(p, truth, bins=1) == pytest.approx(float((p.max(1)[0].mean() - right).abs()))


def test_the_sure_and_right_are_calibrated():
    truth = torch.tensor([0, 1, 2])
    assert score(torch.eye(3), truth) == Score(accuracy=100.0, loss=0.0, ece=0.0)
    assert score(torch.eye(3), truth.roll(1)) == Score(accuracy=0.0, loss=math.inf, ece=1.0)


def test_score_against_torch():
    x, truth = logits(0, examples=50), torch.arange(50) % 4
    found = score(x.softmax(1), truth)
    assert found.loss == pytest.approx(float(functional.cross_entropy(x, truth)), rel=1e-12)
    assert found.accuracy == 100 * float((x.argmax(1) == truth).double().mean())
    assert found.ece == calibration(x.softmax(1), truth)
    assert score(x.softmax(1).float(), truth.int()).loss == pytest.approx(found.loss, rel=1e-5)


# ---- pairs


def test_pairwise_is_every_pair():
    members = {name: logits(i) for i, name in enumerate("abc")}
    found = pairwise(members)
    assert found.labels == ("a", "b", "c")
    for i, p in enumerate(members.values()):
        for j, q in enumerate(members.values()):
            assert found.disagreement[i, j] == disagreement(p, q)
            assert float(found.divergence[i, j]) == pytest.approx(divergence(p, q), rel=1e-14)
    assert found.disagreement[0, 1] > 0
    assert found.divergence[0, 1] != found.divergence[1, 0]


def test_runs_without_names_are_numbered():
    members = torch.stack([logits(0), logits(1)])
    assert pairwise(members).labels == pairwise(list(members)).labels == ("0", "1")


# ---- predictions


def test_predict_evaluates_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[2].eval()
    inputs, _ = batch(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    found = predict(model, inputs, chunk=5)
    assert [module.training for module in model] == [True, True, False, True]
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert torch.equal(stream, torch.get_rng_state())
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.allclose(found, model.eval()(inputs), atol=1e-6)


def test_predict_takes_the_logits_among_several_outputs():
    class Wrapped(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            return {self.name: 2 * x, "mask": x}

    x = torch.ones(5, 2)
    assert torch.equal(predict(Wrapped("logits"), x, chunk=2), 2 * x)
    with pytest.raises(MeasureError, match="the model gives dict; wrap it"):
        predict(Wrapped("features"), x)


def test_predictions_that_need_gradients_are_taken_as_they_are():
    x = network()(batch(0)[0])
    assert disagreement(x, x) == divergence(x, x) == 0.0
    assert not ensemble([x, x]).requires_grad
    assert score(x.softmax(1), x.argmax(1)).accuracy == 100.0


# ---- bad input

NAN_AT_3 = logits(0).index_fill(0, torch.tensor([3]), math.nan)
TRUTH = torch.arange(20) % 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: disagreement(TRUTH, TRUTH[:5]), r"'p' is \[20\], 'q' is \[5\].*data sets\?"),
        (lambda: disagreement(TRUTH[:5], logits(0)), "p has 5 examples, q 20: .*data sets"),
        (lambda: disagreement(logits(0), logits(0, classes=3)), r"'q' is \[20, 3\].*data sets"),
        (lambda: disagreement(TRUTH.double(), TRUTH), r"'p' is torch.float64 \[20\]"),
        (lambda: disagreement(TRUTH[:0], TRUTH[:0]), r"'p' is torch.int64 \[0\]"),
        (lambda: disagreement(logits(0), NAN_AT_3), "'q' is not finite at example 3"),
        (lambda: divergence(logits(0), logits(0, examples=5)), "different data sets"),
        (lambda: divergence(TRUTH, logits(0)), r"'p' is torch.int64 \[20\]; scores are"),
        (lambda: divergence(NAN_AT_3, logits(0)), "'p' is not finite at example 3: .nan"),
        (lambda: ensemble([logits(0)]), "got 1 member: .* two or more"),
        (lambda: ensemble([]), "got 0 members"),
        (lambda: ensemble(logits(0)[None]), "got 1 member"),
        (lambda: ensemble(logits(0)), r"'0' is torch.float64 \[4\]; scores are .*classes"),
        (lambda: ensemble([logits(0), NAN_AT_3]), "'1' is not finite"),
        (lambda: ensemble([logits(0), logits(0, classes=3)]), r"'0' is \[20, 4\], '1' is"),
        (lambda: pairwise({"lottery": logits(0)}), "got 1 member"),
        (lambda: pairwise({"pruned": logits(0), "ticket": NAN_AT_3}), "'ticket' is not finite"),
        (
            lambda: pairwise({"pruned": logits(0), "ticket": logits(0, examples=7)}),
            r"'pruned' is \[20, 4\], 'ticket' is \[7, 4\]: predictions of different data sets",
        ),
        (lambda: score(logits(0), TRUTH), "example 0 has least .* and sum .*logits"),
        (lambda: score(spread([0.5, 1.5]), TRUTH[:2]), "example 1 has least -0.5 and sum 1;"),
        (lambda: score(spread([0.5]) * 0.9, TRUTH[:1]), "example 0 has least 0.45 and sum 0.9"),
        (lambda: score(NAN_AT_3, TRUTH), "'probabilities' is not finite at example 3"),
        (lambda: score(logits(0).softmax(1), TRUTH + 1), "from 1 to 4; classes are 0 to 3"),
        (lambda: score(logits(0).softmax(1), TRUTH - 1), "from -1 to 2; classes are 0 to 3"),
        (lambda: score(logits(0).softmax(1), TRUTH[:9]), "20 predictions, 9 labels: .*data sets"),
        (lambda: score(logits(0).softmax(1), TRUTH.double()), "labels are torch.float64"),
        (lambda: calibration(logits(0).softmax(1), TRUTH, bins=0), "bins is 0"),
        (lambda: calibration(logits(0), TRUTH), "sum to 1"),
    ],
)
def test_bad_input_is_one_clear_line(call, words):
    with pytest.raises(MeasureError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
