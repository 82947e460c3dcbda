"""Event files of runs: what is in ``metrics.jsonl``, and nothing else."""

import json

import pytest
from helpers.small import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sparseflow.core.errors import StoreError
from sparseflow.integrations.tensorboard import write_events
from sparseflow.recipes import make_spec
from sparseflow.runs import Store, execute


def read(folder):
    """All scalars of a folder: tag → [(step, value), ...]."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def short(*settings):
    """RigL from a random mask, for twelve steps."""
    steady = ["mask=erk", *TINY, "method.when.n=3", "measure.updates=3"]
    return make_spec("lenet5-mnist/rigl+", settings=[*steady, *settings])


RECORDS = [
    {"event": "flow", "step": 0, "total": 1.5, "dense": float("nan"), "per_layer": {"a.weight": 1}},
    {
        "event": "update",
        "step": 3,
        "before": {"total": 2.0},
        "after": {"total": 3.0},
        "churn": 0.25,
    },
    {"event": "flow", "step": 4, "total": 0.5, "dense": None, "per_layer": {"a.weight": 2}},
]


def test_scalars_by_tag_and_step(tmp_path):
    assert write_events(tmp_path, RECORDS) == 7
    assert read(tmp_path) == {
        "flow/total": [(0, 1.5), (4, 0.5)],
        "flow/per_layer/a.weight": [(0, 1.0), (4, 2.0)],
        "update/before/total": [(3, 2.0)],
        "update/after/total": [(3, 3.0)],
        "update/churn": [(3, 0.25)],
    }


def test_writing_again_replaces(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".part-left").mkdir()  # by a writer that was killed
    write_events(tmp_path, RECORDS)
    write_events(tmp_path, RECORDS[:1])
    assert read(tmp_path) == {"flow/total": [(0, 1.5)], "flow/per_layer/a.weight": [(0, 1.0)]}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_record_leaves_what_was_there(tmp_path):
    def records():
        yield RECORDS[0]
        raise StoreError("line 2 is damaged")

    write_events(tmp_path, RECORDS)
    with pytest.raises(StoreError, match="line 2"):
        write_events(tmp_path, records())
    assert len(read(tmp_path)) == 5
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file"):
        write_events(tmp_path / "file" / "run", RECORDS)


@pytest.mark.slow
def test_the_command(cli, tmp_path):
    store = Store(cli.store)
    run = execute(short(), store)
    other = execute(short("density=0.1"), store)
    events = tmp_path / "events"
    rows = cli.json("tensorboard", run.id[:8], "-o", str(events))
    folder = events / "lenet5-mnist" / "rigl+" / "seed-0"
    assert [row["folder"] for row in rows] == [str(folder)]
    found = read(folder)
    flow = [record for record in run.metrics() if record["event"] == "flow"]
    assert found["flow/total"] == [(record["step"], record["total"]) for record in flow]
    assert found["eval/test_accuracy"][-1] == (12, run.result["test_accuracy"])
    assert {f"flow/per_layer/{name}" for name in flow[0]["per_layer"]} <= set(found)
    assert [step for step, _ in found["update/churn"]] == [3, 6, 9, 12]
    assert rows[0]["scalars"] == sum(map(len, found.values()))
    both = cli.json("tensorboard", "all", "-o", str(tmp_path / "both"))
    assert sorted(row["folder"][-8:] for row in both) == sorted([run.id[:8], other.id[:8]])
    out, _ = cli("tensorboard", run.id, "-o", str(events))
    assert run.id[:8] in out


def test_nothing_to_write(cli, tmp_path):
    assert "has measured anything yet" in cli.fails("tensorboard", "all", "-o", str(tmp_path))
    assert "names no single run" in cli.fails("tensorboard", "abcdef", "-o", str(tmp_path))


@pytest.mark.slow
def test_a_damaged_file_is_named(cli, tmp_path):
    run = execute(short(), Store(cli.store))
    path = run.path / "metrics.jsonl"
    path.write_text(json.dumps({"event": "flow", "step": 0, "total": 1.0}) + "\n{")
    assert "metrics.jsonl is damaged" in cli.fails("tensorboard", run.id, "-o", str(tmp_path))


def test_a_line_half_written_of_a_run_under_way_is_left_out(tmp_path):
    run = execute(short(), Store(tmp_path))
    whole = list(run.metrics())
    (run.path / "result.json").unlink()
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "fl')
    assert [r["event"] for r in run.metrics()] == [r["event"] for r in whole]
