"""Made-up but realistic evidence of a whole reproduction, for tests of the report.

The runs are the real ones of ``results/lenet5-mnist.json`` (of ``scratch``, seeds
2 and 3 are dead); what studies of their checkpoints would find is drawn at random,
in the sizes that the paper leads to expect.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from sparseflow.plotting.vocabulary import parse_recipe
from sparseflow.report import Results, RunValues, load_results
from sparseflow.studies import Agreement, Distances, Line, Plane, Record, Spectrum, Updates
from sparseflow.studies.agreement import Ensemble, GroupRecord, Member
from sparseflow.studies.update import Trial
from sparseflow.studies.values import Matrix, rounded

RESULTS = Path(__file__).parents[2] / "results" / "lenet5-mnist.json"
EDGES = 1e-3 * np.sinh(np.linspace(-14, 14, 113))
PARAMETERS, IMAGES = 2446, 10_000
SEEDS = range(5)
DEAD_SCRATCH = (2, 3)
GROUPS = {
    "lottery:orders": (98.6, 0.003),
    "scratch:orders": (97.3, 0.026),
    "scratch:inits": (97.4, 0.030),
    "prune-restart:orders": (98.7, 0.002),
    "prune": (98.6, 0.018),
    "rigl+": (97.8, 0.024),
    "set+": (97.7, 0.025),
}
"""Accuracy in %, and about how much two members disagree."""

_DEAD_MEMBERS = {("scratch:inits", 3)}


def evidence(*, seed: int = 0) -> tuple[Record, ...]:
    """What the studies of a reproduction would find."""
    stream = np.random.default_rng(seed)
    found: list[Record] = [*spectra(stream), *updates(stream), *lines(stream)]
    return (*found, plane(), distances(stream), agreement(stream))


def reproduction(*, seed: int = 0, thin: int = 1) -> Results:
    """Real runs, with the groups' and the evidence beside them.

    Args:
        seed: of what is drawn.
        thin: keep every so many points of the gradient-flow curves.
    """
    found = load_results(RESULTS)
    found = replace(found, runs=tuple(_thinned(run, thin) for run in found.runs))
    own = {run.recipe for run in found.runs}
    groups = [name for name in GROUPS if ":" in name and name not in own]
    made = [_child(found, name, s) for name in groups for s in SEEDS if s]
    runs = sorted((*found.runs, *made), key=lambda run: parse_recipe(run.recipe).order)
    return replace(found, runs=tuple(runs), evidence=evidence(seed=seed))


def _thinned(run: RunValues, thin: int) -> RunValues:
    columns = {name: getattr(run.flow, name)[::thin] for name in run.flow.__struct_fields__}
    return replace(run, flow=replace(run.flow, **columns))


def _child(found: Results, group: str, seed: int) -> RunValues:
    """A run of a group, in the likeness of its recipe's first."""
    recipe = group.partition(":")[0]
    like = next(run for run in found.runs if run.recipe == recipe)
    accuracy = 11.35 if (group, seed) in _DEAD_MEMBERS else like.test_accuracy - seed / 50
    seeds = (seed if group.endswith("inits") else 0, 0, seed)
    name = f"{group}-{seed}"
    return replace(like, recipe=group, id=name, seeds=seeds, test_accuracy=accuracy)


def spectrum(
    stream: np.random.Generator,
    label: str,
    *,
    largest: float,
    smallest: float,
    negative: float = 0.1,
    norm: float = 0.5,
    loss: float = 0.3,
    exact: bool = True,
    examples: int = 5000,
    parameters: int = PARAMETERS,
) -> Spectrum:
    """A spectrum with a heavy peak at zero and the tails that are asked for."""
    below = round(negative * parameters)
    above = round(0.3 * parameters)
    up = largest * np.exp(-stream.exponential(2.2, above))
    down = smallest * np.exp(-stream.exponential(1.5, below))
    near = stream.normal(0, 1e-4 * largest, parameters - above - below)
    values = np.concatenate([up, [largest], down, [smallest], near])
    counts = np.histogram(values, EDGES)[0].astype(float)
    if not exact:
        counts *= np.exp(stream.normal(0, 0.05, len(counts)))
    share = float((values < -1e-3 * largest).mean())
    error = 0 if exact else 0.012
    return Spectrum(
        label=label,
        parameters=parameters,
        examples=examples,
        loss=rounded(loss),
        norm=rounded(norm),
        largest=rounded(largest),
        smallest=rounded(smallest),
        negative=rounded(share),
        low=rounded(share - error),
        high=rounded(share + error),
        exact=exact,
        edges=_row(EDGES),
        counts=_row(counts),
    )


def spectra(stream: np.random.Generator) -> list[Spectrum]:
    """At initialisation, and of one trained network."""
    starts = {
        "dense": (3.7, -1.2),
        "shuffled": (0.11, -0.06),
        "shuffled-liu": (0.7, -0.14),
        "shuffled+": (0.6, -0.18),
        "lottery": (0.12, -0.04),
    }
    found = [
        spectrum(
            stream,
            f"{recipe} {seed} start",
            largest=high * math.exp(stream.normal(0, 0.15)),
            smallest=low * math.exp(stream.normal(0, 0.15)),
            exact=recipe != "dense",
            parameters=61_706 if recipe == "dense" else PARAMETERS,
        )
        for recipe, (high, low) in starts.items()
        for seed in range(3)
    ]
    ends = {"largest": 41.0, "smallest": -0.6, "negative": 0.08, "norm": 0.02, "loss": 0.05}
    return [
        *found,
        spectrum(stream, "rigl+ 0 end", examples=10_000, **ends),
        spectrum(stream, "rigl+ 0 end", examples=10_000, exact=False, **ends),
        spectrum(stream, "rigl+ 0 end", examples=60_000, exact=False, **ends),
    ]


def updates(stream: np.random.Generator) -> list[Updates]:
    """Networks of five seeds at three steps, by each rule."""
    rules = {"rigl": (1, 0.03, 0.9), "rigl-inverted": (1, 0.0, 0.02)}
    rules |= {"set": (3, 0.004, 0.05), "random": (3, 0.002, 0.5)}
    found = []
    for seed in SEEDS:
        for step in (1000, 4000, 8000):
            norm = 0.8 * 1000 / step * math.exp(stream.normal(0, 0.2))
            sizes = {"largest": 40.0, "loss": 0.2}
            before = spectrum(
                stream, "", smallest=-2.0, negative=0.08, norm=norm, examples=1000, **sizes
            )
            after = []
            for rule, (draws, more, rise) in rules.items():
                for draw in range(draws):
                    share = 0.08 + more * (1 + stream.normal(0, 0.3))
                    up = norm * (1 + rise * (1 + stream.normal(0, 0.3)))
                    deep = -2.0 * (1 + rise) * math.exp(stream.normal(0, 0.02))
                    made = spectrum(
                        stream, "", smallest=deep, negative=share, norm=up, examples=1000, **sizes
                    )
                    after.append(Trial(rule, draw, 0.05, round(share * PARAMETERS), made))
            found.append(Updates(f"rigl+ {seed} {step}", step, 0.29, before, tuple(after)))
    return found


def lines(stream: np.random.Generator) -> list[Line]:
    """From starts and ends of tickets, scratch runs and RigL to each seed's pruned network."""
    kinds = [
        ("lottery", "start", False, 2.3, 0.4, 11.0),
        ("lottery", "end", False, 0.05, 0.14, 7.0),
        ("scratch", "start", False, 2.3, 1.2, 17.0),
        ("scratch", "end", False, 0.06, 1.7, 20.0),
        ("scratch", "end", True, 0.06, 0.8, 15.0),
        ("rigl+", "end", False, 0.06, 2.1, 24.0),
        ("rigl+", "end", True, 0.06, 1.6, 21.0),
    ]
    return [
        _line(stream, seed, *kind)
        for kind in kinds
        for seed in SEEDS
        if not (kind[2] and kind[0] == "scratch" and seed in DEAD_SCRATCH and seed % 2)
    ]


def _line(
    stream: np.random.Generator,
    seed: int,
    recipe: str,
    when: str,
    aligned: bool,
    loss: float,
    height: float,
    far: float,
) -> Line:
    dead = recipe == "scratch" and when == "end" and seed in DEAD_SCRATCH
    alphas = np.linspace(-0.2, 1.2, 29)
    start = 2.301 if dead else loss
    chord = start + (0.037 - start) * alphas
    bump = height * math.exp(stream.normal(0, 0.2)) * np.sin(np.pi * alphas) ** 2
    outside = 3 * np.clip(np.abs(alphas - 0.5) - 0.5, 0, None)
    train = np.maximum(chord, 0.03) + (0 if dead else bump) + outside
    accuracy = np.clip(99 - 20 * train, 11.35, None)
    if dead:
        accuracy[alphas < 0.5] = 11.35
    distance = far * (1 + stream.normal(0, 0.05))
    test = train + 0.01
    return Line(
        labels=(f"{recipe} {seed} {when}", f"prune {seed} end"),
        aligned=aligned,
        distance=rounded(distance),
        alphas=_row(alphas),
        train_loss=_row(train),
        train_accuracy=_row(accuracy),
        test_loss=_row(test),
        test_accuracy=_row(accuracy - (0 if dead else 0.3)),
        barrier=rounded(_barrier(alphas, train)),
        error_barrier=rounded(_barrier(alphas, -accuracy)),
        test_barrier=rounded(_barrier(alphas, test)),
    )


def _barrier(alphas: np.ndarray, values: np.ndarray) -> float:
    inside = (alphas > -1e-9) & (alphas < 1 + 1e-9)
    v, a = values[inside], alphas[inside]
    return float((v - ((1 - a) * v[0] + a * v[-1])).max())


def plane() -> Plane:
    """Two of the three corners in one basin."""
    corners = np.array([[0.0, 0.0], [7.0, 0.0], [4.0, 19.0]])
    x, y = np.linspace(-4, 11, 21), np.linspace(-4, 23, 21)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    wells = [
        0.03 + depth * ((grid - at) ** 2).sum(-1)
        for at, depth in zip(corners, (0.012, 0.012, 0.02), strict=True)
    ]
    losses = np.minimum.reduce([*wells, np.full(wells[0].shape, 9.0)])
    losses = np.minimum(losses, 0.05 + 0.02 * np.abs(grid[..., 1]) ** 2)
    return Plane(
        labels=("prune 0 end", "lottery 0 end", "scratch 0 end"),
        positions=_matrix(corners),
        x=_row(x),
        y=_row(y),
        losses=_matrix(losses),
    )


def distances(stream: np.random.Generator) -> Distances:
    """Starts and ends of the children of one pruned network, mapped by classical scaling."""
    width = 60
    ticket, pruned = stream.normal(0, 1.3, width), stream.normal(0, 1.3, width) + 0.4
    points = {"prune 0 start": ticket + 0.3, "prune 0 end": pruned}
    for s in SEEDS:
        first = stream.normal(0, 1.3, width)
        points[f"lottery:orders {s} start"] = ticket
        points[f"lottery:orders {s} end"] = 0.6 * pruned + 0.4 * ticket + _noise(stream, width)
        points[f"scratch:inits {s} start"] = first
        points[f"scratch:inits {s} end"] = 1.6 * first + _noise(stream, width)
        points[f"prune-restart:orders {s} end"] = pruned + _noise(stream, width)
    for s in SEEDS:
        base = points["scratch:inits 0 end"]
        points[f"scratch:orders {s} end"] = base + 3 * _noise(stream, width)
    table = np.stack(list(points.values()))
    l2 = np.sqrt(((table[:, None] - table[None]) ** 2).sum(-1))
    norms = np.sqrt((table**2).sum(-1))
    cosine = 1 - (table @ table.T) / np.outer(norms, norms)
    places, stress = _scaled(l2)
    zeros = np.zeros_like(l2)
    return Distances(
        labels=tuple(points),
        l2=_matrix(l2),
        cosine=_matrix(cosine),
        hamming=_matrix(zeros),
        jaccard=_matrix(zeros),
        places=_matrix(places),
        stress=rounded(stress),
    )


def _noise(stream: np.random.Generator, width: int) -> np.ndarray:
    return stream.normal(0, 0.25, width)


def _scaled(l2: np.ndarray) -> tuple[np.ndarray, float]:
    """Torgerson's map and its stress-1."""
    centre = np.eye(len(l2)) - 1 / len(l2)
    values, vectors = np.linalg.eigh(-0.5 * centre @ l2**2 @ centre)
    places = vectors[:, -2:] * np.sqrt(values[-2:])
    mapped = np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))
    return places, float(np.sqrt(((l2 - mapped) ** 2).sum() / (l2**2).sum()))


def agreement(stream: np.random.Generator) -> Agreement:
    """Wrong answers drawn image by image: some hard for all, some each network's own."""
    hard = stream.random(IMAGES) < 0.008
    answers: dict[str, np.ndarray] = {}
    groups = []
    for name, (accuracy, apart) in GROUPS.items():
        shared = max((100 - accuracy) / 100 - 0.006 - apart / 2, 0)
        common = hard | (stream.random(IMAGES) < shared)
        for s in SEEDS:
            own = stream.random(IMAGES) < apart / 2
            wrong = np.where(common | own, stream.integers(1, 10, IMAGES), 0)
            if (name, s) in _DEAD_MEMBERS:
                wrong = (stream.random(IMAGES) > 0.1135).astype(int)
            answers[f"{name} {s} end"] = wrong
        groups.append(name)
    table = [*answers.values(), answers["prune 0 end"]]
    matrix = np.array([[(a != b).mean() for b in table] for a in table])
    labels = (*answers, "prune 0 end")
    made = tuple(_group(stream, name, answers) for name in groups)
    return Agreement(made, labels, labels, _matrix(matrix), _matrix(3 * matrix))


def _group(stream: np.random.Generator, name: str, answers: dict[str, np.ndarray]) -> GroupRecord:
    members = []
    for s in SEEDS:
        wrong = answers[f"{name} {s} end"]
        accuracy = 100 * float((wrong == 0).mean())
        apart = float((wrong != answers["prune 0 end"]).mean())
        alone = (name, s) == ("prune", 0)
        members.append(
            Member(
                label=f"{name} {s} end",
                accuracy=rounded(accuracy),
                loss=rounded(0.03 * (100 - accuracy)),
                ece=rounded(0.004 * (1 + stream.random())),
                dead=accuracy < 20,
                reference=None if alone else rounded(apart),
                divergence=None if alone else rounded(3 * apart),
            )
        )
    living = [member for member in members if not member.dead]
    votes = np.mean([answers[member.label] == 0 for member in living], axis=0)
    right = votes > 0.5
    gains = 100 * (right - votes)
    accuracy = 100 * float(right.mean())
    ensemble = Ensemble(
        size=len(living),
        accuracy=rounded(accuracy),
        loss=rounded(0.025 * (100 - accuracy)),
        ece=0.0061,
        gain=rounded(float(gains.mean())),
        error=rounded(float(gains.std()) / 100),
    )
    return GroupRecord(name, tuple(members), ensemble)


def _row(values: Sequence[float] | np.ndarray) -> tuple[float | None, ...]:
    return tuple(rounded(float(value)) for value in values)


def _matrix(values: np.ndarray) -> Matrix:
    return tuple(_row(row) for row in values)
