"""The callbacks of other people's trainers on two ranks; as a script, what one rank does."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS, HALF = 12, 6


def hugging_face(module, folder):
    """Masks after every step, and of a trainer that goes on from the checkpoint half-way."""
    options = {"ddp_backend": "gloo"}
    trainer, _, watch = module.trainer_in(folder, options=options)
    trainer.train()
    again, _, watched = module.trainer_in(folder, options=options)
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{HALF}"))
    return trainer.args.world_size, watch, watched


def lightning(module, folder):
    """The same."""
    options = {"strategy": "ddp", "devices": 2}
    trainer, _, watch = module.trainer_in(folder / "a", options=options)
    trainer.fit(module.Regression(), module.data())
    again, _, watched = module.trainer_in(folder / "b", options=options)
    watched.masks += watch.masks[:HALF]  # it has a place for each step
    again.fit(module.Regression(), module.data(), ckpt_path=folder / "a" / f"step={HALF}.ckpt")
    watched.masks = watched.masks[HALF:]
    return trainer.world_size, watch, watched


TRAINERS = {"test_huggingface": hugging_face, "test_lightning": lightning}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["test_huggingface", pytest.param("test_lightning", marks=pytest.mark.soak)]
)
def test_ranks_have_the_same_masks_and_go_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launch, "--nproc-per-node", "2", __file__, name, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank-*")))
    assert first == second
    assert first["ranks"] == 2
    assert len(first["masks"]) == STEPS
    assert len(set(first["masks"])) == 7  # at the start, and six updates
    assert first["resumed"] == first["masks"][HALF:]


if __name__ == "__main__":
    job, root = sys.argv[1], Path(sys.argv[2])
    ranks, *watches = TRAINERS[job](importlib.import_module(job), root)
    seen, resumed = ([masks.digest() for masks in watch.masks] for watch in watches)
    report = {"ranks": ranks, "masks": seen, "resumed": resumed}
    (root / f"rank-{os.environ['RANK']}").write_text(json.dumps(report))
