"""Trial updates of one network: each starts from that network, counted by its threshold."""

import pytest
import torch
from helpers.small import tiny

from sparseflow.runs import RunSpec, Store, execute
from sparseflow.runs.build import probe_batch
from sparseflow.studies import Point, UpdateStudy, carry_out, update
from sparseflow.studies.load import examples
from sparseflow.studies.replay import just_before, rule_of
from sparseflow.studies.spectrum import measured_exactly
from sparseflow.studies.update import DRAWS, Updates
from sparseflow.topology import propose

pytestmark = pytest.mark.slow  # exact spectra

STEP = 9
THRESHOLD = 0.1
"""Of negative eigenvalues; so large that some are below one network's and not below another's."""
SETTINGS = (
    "density=0.1", "data.limit=300", "data.probe=50", "model.widths=[8,6]",
    "method.drop=constant", "train.steps=12",
)  # fmt: skip


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, RunSpec, Updates]:
    """One network before its update at step 9, and after it by every rule."""
    store = Store(tmp_path_factory.mktemp("runs"))
    spec = tiny("mlp-mnist/rigl+", *SETTINGS)
    run = execute(spec, store)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(update, "NEGATIVE", THRESHOLD)
    study = UpdateStudy(Point(run.id, STEP, f"rigl+ 0 {STEP}"), draws=1, examples=20)
    record = carry_out(study, store)
    monkeypatch.undo()
    return store, spec, record


def test_every_trial_starts_from_the_network_before(
    tried: tuple[Store, RunSpec, Updates],
) -> None:
    store, spec, record = tried
    run = store.run(spec)
    by_own = []
    for trial in record.after:
        parts, model, masks, moment = just_before(run, store, STEP)  # fresh for each
        batch = examples(parts.dataset, 20)
        _, values = measured_exactly(model, masks, batch)
        method = rule_of(trial.rule, run, model, probe_batch(parts.dataset, 50, 1))
        stream = DRAWS * spec.seeds.mask + trial.draw
        changed = propose(method, model, masks, moment, seed=stream)
        changed.apply(model)
        alone, after = measured_exactly(model, changed, batch)
        assert trial.spectrum.loss == pytest.approx(alone.loss, rel=1e-5)
        assert trial.spectrum.largest == pytest.approx(alone.largest, rel=1e-4)
        assert trial.negative == int((after < -THRESHOLD * float(values.max())).sum())
        by_own.append(int((after < -THRESHOLD * float(after.max())).sum()))
    assert by_own != [trial.negative for trial in record.after]  # the two counts can be told apart


def test_the_network_before_is_that_of_its_step(tried: tuple[Store, RunSpec, Updates]) -> None:
    """Not that of an earlier checkpoint: the replay has taken every step in between."""
    store, spec, record = tried
    run = store.run(spec)
    parts, model, masks, _ = just_before(run, store, STEP)
    now, _ = measured_exactly(model, masks, examples(parts.dataset, 20))
    assert record.before.loss == pytest.approx(now.loss, rel=1e-5)
    earlier, kept = run.checkpoint(8)
    assert any(not torch.equal(earlier[n], t) for n, t in model.state_dict().items())
    model.load_state_dict(earlier)
    then, _ = measured_exactly(model, kept, examples(parts.dataset, 20))
    assert record.before.loss != pytest.approx(then.loss, rel=1e-4)
