"""What sparse execution gains: the costs, the plan, and what conversion does with it."""

import copy
import itertools
import json
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import MaskError
from sparseflow.masks import Masks
from sparseflow.models import lenet5, mlp
from sparseflow.sparse import SparseConv2d, SparseLinear
from sparseflow.sparse.convert.conversion import Conversion
from sparseflow.sparse.kernels.linear import LinearPattern
from sparseflow.sparse.plan import cost, predict, timing
from sparseflow.sparse.plan.cost import Costs, Line, Work, fit, work_of
from sparseflow.sparse.plan.plan import Plan
from sparseflow.sparse.plan.predict import Call, LayerPlan, Times

CASES = (("dense", "sparse"), ("linear", "conv"), ("forward", "first", "inner"))
counts = st.integers(0, 10**8)
rates = st.sampled_from([0.0, 1e-12, 1e-10, 1e-8])


def costs(dense=1e-9, sparse=1e-9, layout=0.0, steps=(1, 2, 3)):
    """Made-up costs per multiply-add; the steps cost in these proportions."""
    lines = {}
    for kind in ("linear", "conv"):
        for step, times in zip(("forward", "first", "inner"), steps, strict=True):
            lines["dense", kind, step] = Line(0.0, times * dense, 0.0, 0.0)
            lines["sparse", kind, step] = Line(0.0, times * sparse, 0.0, 0.0)
    for step, times in (("forward", 1), ("inner", 2)):
        lines["dense", "layout", step] = Line(0.0, 0.0, times * layout, 0.0)
    return Costs(lines)


@pytest.fixture
def given_costs(monkeypatch):
    """Plan with made-up costs in place of this machine's."""

    def use(**how):
        monkeypatch.setattr(predict, "calibrated", lambda: costs(**how))

    return use


def two_layers(first=0.1, second=0.9):
    """Linear layers of 32 by 32 with exact densities."""
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    masks = {}
    for name, density in (("0.weight", first), ("2.weight", second)):
        mask = torch.zeros(1024, dtype=torch.bool)
        mask[: round(1024 * density)] = True
        masks[name] = mask[torch.randperm(1024)].view(32, 32)
    return model, Masks(masks)


class TestCosts:
    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (nn.Linear(7, 5), (3, 7)),
            (nn.Linear(7, 5), (3, 4, 7)),
            (nn.Conv2d(4, 6, 3), (2, 4, 9, 8)),
            (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (2, 3), groups=2), (5, 4, 9, 8)),
            (nn.Conv2d(4, 6, 3, padding="same"), (1, 4, 9, 8)),
        ],
    )
    def test_dense_work_is_that_of_the_layer(self, layer, shape):
        out = layer(torch.zeros(shape))
        fan_in = layer.weight[0].numel()
        assert work_of(layer, torch.Size(shape)) == Work(
            products=out.numel() * fan_in, outputs=out.numel(), weights=layer.weight.numel()
        )

    @pytest.mark.parametrize(("n", "lanes"), [(1, 16), (16, 16), (17, 32), (128, 128)])
    def test_sparse_work_is_that_of_whole_blocks(self, n, lanes):
        layer = nn.Conv2d(2, 4, 3)
        found = work_of(layer, torch.Size((n, 2, 6, 5)), nnz=10)
        assert found == Work(products=lanes * 12 * 10, outputs=lanes * 12 * 4, weights=10)

    @given(st.lists(st.builds(Work, counts, counts, counts), min_size=4, max_size=8), st.data())
    def test_fit_explains_what_a_line_made(self, works, data):
        true = Line(data.draw(st.floats(1e-6, 1e-3)), *(data.draw(rates) for _ in range(3)))
        found = fit(works, [true.seconds(w) for w in works])
        assert min(found.overhead, found.product, found.output, found.weight) >= 0
        for work in works:
            assert found.seconds(work) == pytest.approx(true.seconds(work), rel=1e-6)

    def test_fit_is_the_best_non_negative_one(self):
        """Times that fall as work grows want a negative slope, and must not get it."""
        found = fit([Work(1, 0, 0), Work(2, 0, 0), Work(3, 0, 0)], [1.0, 1.0, 0.5])
        assert (found.product, found.output, found.weight) == (0, 0, 0)
        # The constant a of least Σ(a / t − 1)²: Σ(1 / t) / Σ(1 / t²) = 4 / 6.
        assert found.overhead == pytest.approx(4 / 6)

    def test_calibration_covers_every_case_once_per_number_of_threads(self, monkeypatch):
        state = torch.get_rng_state()
        found = sound_calibration()
        assert torch.equal(torch.get_rng_state(), state)
        cases = set(itertools.product(*CASES))
        layout = {("dense", "layout", "forward"), ("dense", "layout", "inner")}
        assert set(found.lines) == cases | layout
        assert all(map(grows, found.lines.values()))
        assert cost.calibrated() is found
        other = costs()
        monkeypatch.setattr(cost, "_calibrated", {1: found, 3: other}.get)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert cost.calibrated() is other


def grows(line):
    """Any two layers a million-fold apart in work differ in time on any machine."""
    return line.seconds(Work(10**12, 10**9, 10**9)) > line.seconds(Work(10, 10, 10)) > 0


def sound_calibration():
    """Calibrate, and again where other work on the machine left nothing but noise in a line."""
    for _ in range(8):
        cost._calibrated.cache_clear()
        found = cost.calibrated()
        if all(map(grows, found.lines.values())):
            break
    return found


def calls_of(model, names, *example):
    """How layers with full masks are called, and why the model cannot be traced."""
    masks = {n: torch.ones_like(model.get_parameter(n), dtype=torch.bool) for n in names}
    conversion = Conversion(model, masks, example)
    return predict.calls_of(conversion), conversion.trace.problem


class TestCalls:
    def test_shapes_steps_and_repeated_calls(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(32, 32)
                self.out = nn.Linear(in_features=32, out_features=3)

            def forward(self, x):
                x = self.conv(x).flatten(1)
                return self.out(input=self.fc(torch.relu(self.fc(x))))

        names = ["conv.weight", "fc.weight", "out.weight"]
        found, why = calls_of(Twice(), names, torch.zeros(5, 1, 4, 4))
        inner = Call(torch.Size((5, 32)), alone=False, first=False)
        assert why == ""
        assert found["conv.weight"] == [Call(torch.Size((5, 1, 4, 4)), alone=False, first=True)]
        assert found["fc.weight"] == [inner, inner]
        assert found["out.weight"] == [Call(torch.Size((5, 32)), alone=True, first=False)]

    def test_what_comes_after_a_frozen_layer_is_first(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        model[0].requires_grad_(False)
        found, _ = calls_of(model, ["0.weight", "1.weight", "2.weight"], torch.zeros(2, 4))
        assert [calls[0].first for calls in found.values()] == [True, True, False]

    def test_an_untraceable_model_is_observed_and_left_as_it_was(self):
        class Branching(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 8)
                self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout()

            def forward(self, x):
                x = self.drop(self.norm(self.one(x)))
                return self.two(x) if x.sum() > -1e9 else x

        model = Branching().train()
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        found, why = calls_of(model, ["one.weight", "two.weight"], torch.zeros(3, 6))
        assert "cannot be traced" in why
        assert found["one.weight"] == [Call(torch.Size((3, 6)), alone=True, first=True)]
        assert found["two.weight"] == [Call(torch.Size((3, 8)), alone=True, first=False)]
        assert all(m.training and not m._forward_pre_hooks for m in model.modules())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)

    def test_layers_where_the_tracer_does_not_look_are_observed(self):
        model = nn.Sequential(
            nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        )
        found, why = calls_of(model, ["0.weight", "1.linear1.weight"], torch.zeros(2, 5, 8))
        assert why == ""
        shape = torch.Size((2, 5, 8))
        assert found["0.weight"] == [Call(shape, alone=True, first=True)]
        assert found["1.linear1.weight"] == [Call(shape, alone=True, first=False)]

    def test_an_input_that_does_not_fit(self):
        with pytest.raises(MaskError, match="Sequential does not run on the example input"):
            calls_of(nn.Sequential(nn.Linear(4, 4)), ["0.weight"], torch.zeros(2, 5))


class TestPlan:
    def test_times_are_those_of_the_costs(self, given_costs):
        given_costs(dense=1e-9, sparse=4e-9)
        model, masks = two_layers(0.125, 0.5)
        found = sf.plan(model, masks, torch.zeros(20, 32))
        first, second = found.layers
        assert first.dense_seconds == pytest.approx(2 * 20 * 1024 * 1e-9)
        assert first.sparse_seconds == pytest.approx(2 * 32 * 128 * 4e-9)
        assert second.dense_seconds == pytest.approx(3 * 20 * 1024 * 1e-9)
        assert second.sparse_seconds == pytest.approx(3 * 32 * 512 * 4e-9)
        assert (first.sparse, second.sparse) == (True, False)
        assert first.speedup == pytest.approx(20 * 1024 / (32 * 128 * 4))
        assert (first.shape, first.density, first.kind) == ((32, 32), 0.125, "linear")
        assert (found.batch, found.threads, found.training) == (20, 1, True)
        dense = first.dense_seconds + second.dense_seconds
        assert found.whole.dense_seconds == pytest.approx(dense)
        assert found.whole.sparse_seconds == pytest.approx(
            first.sparse_seconds + second.dense_seconds
        )
        assert not found.whole.measured
        forward = sf.plan(model, masks, torch.zeros(20, 32), training=False)
        assert forward.layers[1].dense_seconds == pytest.approx(second.dense_seconds / 3)

    def test_where_none_is_chosen_the_whole_is_as_if_all_were(self, given_costs):
        given_costs(sparse=1.0)
        model, masks = two_layers()
        found = sf.plan(model, masks, torch.zeros(16, 32))
        assert not any(p.sparse for p in found.layers)
        assert found.whole.sparse_seconds == sum(p.sparse_seconds for p in found.layers)

    def test_choices_follow_the_costs(self, given_costs):
        model, masks = two_layers(0.1, 0.9)
        for ratio, expected in ((0.5, [True, True]), (2, [True, False]), (20, [False, False])):
            given_costs(sparse=ratio * 1e-9)
            found = sf.plan(model, masks, torch.zeros(64, 32))
            assert [p.sparse for p in found.layers] == expected

    def test_a_layer_called_twice_counts_twice(self, given_costs):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(5, 5)

            def forward(self, x):
                return self.fc(torch.relu(self.fc(x)))

        given_costs()
        model = Twice()
        masks = {"fc.weight": torch.ones(5, 5, dtype=torch.bool)}
        found = sf.plan(model, masks, torch.zeros(16, 5))
        once = 16 * 25 * 1e-9
        assert found.layers[0].dense_seconds == pytest.approx((2 + 3) * once)

    def test_an_untraceable_model_pays_for_the_layout(self, given_costs):
        class Branching(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 6)

            def forward(self, x):
                return self.fc(x) if x.sum() > 0 else -self.fc(x)

        given_costs(layout=1e-9)
        masks = {"fc.weight": torch.ones(6, 4, dtype=torch.bool)}
        found = sf.plan(Branching(), masks, torch.ones(16, 4), training=False)
        kernel = 16 * 24 * 1e-9
        assert found.layers[0].sparse_seconds == pytest.approx(kernel + 16 * (4 + 6) * 1e-9)
        assert "cannot be traced" in found.obstacles["Branching"]
        assert "changes the layout alone" in str(found)

    def test_obstacles(self, given_costs):
        class Partly(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)
                self.other = nn.Conv3d(1, 1, 1)

            def forward(self, x):
                return self.other(self.used(x)[:, None, None, None])

        given_costs()
        model = Partly()
        masks = sf.make_masks(sf.maskable(model), 0.5)
        found = sf.plan(model, masks, torch.zeros(2, 6))
        assert [p.name for p in found.layers] == ["used.weight"]
        assert found.obstacles == {
            "other.weight": "Conv3d has no sparse form",
            "idle.weight": "not called on the example input",
        }
        assert "  idle.weight: not called on the example input" in str(found).splitlines()

    def test_nothing_that_could_be_sparse(self):
        model = nn.Conv3d(2, 2, 3)
        masks = sf.make_masks(sf.maskable(model), 0.5)
        found = sf.plan(model, masks, torch.zeros(1, 2, 5), measure=True)
        assert (found.layers, found.whole.dense_seconds) == ((), 0)
        assert "Conv3d has no sparse form" in str(found)

    def test_masks_that_do_not_fit(self):
        masks = {"weight": torch.ones(3, 4, dtype=torch.bool)}
        with pytest.raises(MaskError, match="shape"):
            sf.plan(nn.Linear(4, 4), masks, torch.zeros(1, 4))


PLAN = Plan(
    layers=(
        LayerPlan(
            name="a.weight", kind="conv", shape=(6, 1, 5, 5), density=0.05,
            dense_seconds=2e-3, sparse_seconds=0.5e-3, measured=False,
        ),
        LayerPlan(
            name="b.weight", kind="linear", shape=(10, 84), density=1.0,
            dense_seconds=1e-3, sparse_seconds=2e-3, measured=False,
        ),
    ),
    whole=Times(dense_seconds=3e-3, sparse_seconds=1.5e-3, measured=False),
    obstacles={"c.weight": "Conv3d has no sparse form"},
    batch=128,
    threads=2,
    training=True,
)  # fmt: skip


class TestText:
    def test_the_table(self):
        lines = [line.split() for line in str(PLAN).splitlines()]
        assert " ".join(lines[0]) == "training step, batch 128, 2 threads, predicted"
        assert ["a.weight", "6×1×5×5", "5", "%", "2.000", "0.500", "4.00×", "sparse"] in lines
        assert ["b.weight", "10×84", "100", "%", "1.000", "2.000", "0.50×", "dense"] in lines
        assert ["sum", "of", "the", "layers", "3.000", "1.500", "2.00×"] in lines
        assert " ".join(lines[-1]) == "c.weight: Conv3d has no sparse form"

    def test_columns_are_aligned_and_no_line_is_padded(self):
        lines = str(PLAN).splitlines()
        assert all(line == line.rstrip() for line in lines)
        assert len({line.rindex("×") for line in lines if "×" in line}) == 1

    def test_to_dict_goes_through_json(self):
        found = json.loads(json.dumps(PLAN.to_dict()))
        assert found == PLAN.to_dict()
        assert (found["batch"], found["threads"], found["training"]) == (128, 2, True)
        assert found["obstacles"] == PLAN.obstacles
        assert found["layers"][1] == {
            "name": "b.weight", "kind": "linear", "shape": [10, 84], "density": 1.0,
            "dense_seconds": 1e-3, "sparse_seconds": 2e-3, "measured": False,
            "speedup": 0.5, "sparse": False,
        }  # fmt: skip
        assert found["whole"]["speedup"] == pytest.approx(2)


class TestOnThisMachine:
    """Choices that differ several-fold in time on any machine."""

    def test_lenet5(self):
        sound_calibration()
        model = lenet5()
        masks = sf.make_masks(sf.maskable(model), 0.05, allocation="uniform")
        found = sf.plan(model, masks, torch.zeros(128, 1, 28, 28))
        assert [p.kind for p in found.layers] == ["conv"] * 2 + ["linear"] * 3
        assert [p.name for p in found.layers] == list(masks)
        assert all(p.dense_seconds > 0 < p.sparse_seconds for p in found.layers)

    @pytest.mark.soak  # other work on the machine disturbs the calibration
    def test_the_inner_convolution_of_lenet5_is_sparse(self):
        """It costs a twelfth."""
        sound_calibration()
        model = lenet5()
        masks = sf.make_masks(sf.maskable(model), 0.05, allocation="uniform")
        assert sf.plan(model, masks, torch.zeros(128, 1, 28, 28)).layers[1].sparse

    @pytest.mark.parametrize(("density", "batch", "sparse"), [(1.0, 1, False), (0.02, 128, True)])
    def test_linear_1024(self, density, batch, sparse):
        """A full layer computes 16 examples for one; a nearly empty one next to nothing."""
        model = nn.Sequential(nn.Linear(1024, 1024))
        stream = torch.Generator().manual_seed(0)
        masks = {"0.weight": torch.rand(1024, 1024, generator=stream) < density}
        found = sf.plan(model, masks, torch.zeros(batch, 1024), training=False)
        assert [p.sparse for p in found.layers] == [sparse]

    @pytest.mark.parametrize("training", [True, False])
    def test_measured(self, training):
        model = mlp((32, 16)).train()
        model.insert(2, nn.BatchNorm1d(32))
        model.insert(3, nn.Dropout())
        masks = sf.make_masks(sf.maskable(model), 0.1)
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        found = sf.plan(model, masks, torch.ones(4, 1, 28, 28), measure=True, training=training)
        assert all(p.measured and p.dense_seconds > 0 < p.sparse_seconds for p in found.layers)
        assert found.whole.measured
        assert min(found.whole.dense_seconds, found.whole.sparse_seconds) > 0
        assert "whole model" in str(found)
        assert model.training
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        assert torch.equal(torch.get_rng_state(), state)

    def test_measured_where_layers_stand_alone(self):
        class Branching(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(8, 4)

            def forward(self, x):
                x = self.conv(x).flatten(1)
                return {"out": self.fc(x), "n": len(x)} if x.sum() > -1e9 else {}

        model = Branching()
        masks = sf.make_masks(sf.maskable(model), 0.5)
        with torch.inference_mode():
            found = sf.plan(model, masks, torch.ones(3, 1, 4, 4), measure=True)
        assert [p.measured for p in found.layers] == [True, True]


@pytest.mark.parametrize("step", ["forward", "first", "inner"])
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_timed_computes_what_the_step_asks_for(step, alone, monkeypatch):
    """Dense: the gradients that autograd is asked for; sparse: the kernels that are called."""
    asked, called = [], []
    grad = torch.autograd.grad

    def spy(y, inputs, gradient):
        asked.append([tuple(t.shape) for t in inputs])
        return grad(y, inputs, gradient)

    def note(name):
        kernel = getattr(LinearPattern, name)

        def run(*args, **kwargs):
            called.append(name)
            return kernel(*args, **kwargs)

        monkeypatch.setattr(LinearPattern, name, run)

    for name in ("forward", "weight_gradient", "input_gradient"):
        note(name)
    layer = nn.Linear(6, 4)
    mask = torch.rand(4, 6) < 0.5
    dense, sparse = timing.passes(layer, mask, torch.Size((3, 6)), step=step, alone=alone)
    monkeypatch.setattr(torch.autograd, "grad", spy)
    dense()
    assert (
        asked == {"forward": [], "first": [[(4, 6), (4,)]], "inner": [[(4, 6), (4,), (3, 6)]]}[step]
    )
    called.clear()
    sparse()
    wanted = ["forward", "weight_gradient", "input_gradient"]
    assert called == wanted[: {"forward": 1, "first": 2, "inner": 3}[step]]
    assert layer.weight.grad is None
    assert layer.weight.requires_grad


def test_rounds_are_bounded():
    times = timing.interleaved([lambda: None, lambda: None], budget=0.0, rounds=(3, 9))
    assert [len(t) for t in times] == [3, 3]
    times = timing.interleaved([lambda: None], budget=60.0, rounds=(1, 4))
    assert [len(t) for t in times] == [4]


class TestConversion:
    def test_a_slower_layer_is_left_dense(self, given_costs):
        given_costs(sparse=2e-9)
        model, masks = two_layers(0.125, 0.75)
        masks.apply(model)
        x = torch.randn(16, 32)
        with pytest.warns(
            UserWarning, match=r"left masked dense: 2\.weight \(would be 1\.5 times slower\)"
        ):
            sparse = sf.to_sparse(model, masks, x)
        assert isinstance(sparse.get_submodule("0"), SparseLinear)
        assert type(sparse.get_submodule("2")) is nn.Linear
        torch.testing.assert_close(sparse(x), model(x))

    def test_all_slower(self, given_costs):
        given_costs(sparse=1e-6)
        model, masks = two_layers(0.5, 0.5)
        x = torch.randn(16, 32)
        with pytest.raises(MaskError, match=r"no layer .* faster .*0\.weight would be 500 .*force"):
            sf.to_sparse(model, masks, x)
        sparse = sf.to_sparse(model, masks, x, force=True)
        assert isinstance(sparse.get_submodule("2"), SparseLinear)

    def test_the_mode_of_the_model_says_what_to_plan_for(self, monkeypatch):
        lines = dict(costs().lines)
        for step, seconds in (("forward", 0.0), ("first", 1.0), ("inner", 1.0)):
            lines["sparse", "linear", step] = Line(seconds, 0.0, 0.0, 0.0)
        monkeypatch.setattr(predict, "calibrated", lambda: Costs(lines))
        model, masks = two_layers()
        assert sf.to_sparse(model.eval(), masks, torch.zeros(16, 32))
        with pytest.raises(MaskError, match="would be faster sparse"):
            sf.to_sparse(model.train(), masks, torch.zeros(16, 32))

    def test_a_layer_that_is_never_called_stays_dense(self, given_costs):
        class Partly(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)

            def forward(self, x):
                return functional.relu(self.used(x))

        given_costs(sparse=0.0)
        model = Partly()
        masks = sf.make_masks(sf.maskable(model), 0.5)
        with pytest.warns(UserWarning, match=r"idle\.weight \(not called on the example input\)"):
            sparse = sf.to_sparse(model, masks, torch.zeros(2, 6))
        assert type(sparse.get_submodule("idle")) is nn.Linear

    def test_no_warning_where_all_gain(self, given_costs):
        given_costs(sparse=0.0)
        model = lenet5()
        masks = sf.make_masks(sf.maskable(model), 0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sparse = sf.to_sparse(model, masks, torch.zeros(2, 1, 28, 28))
        kinds = [type(m) for m in sparse.modules() if isinstance(m, SparseConv2d | SparseLinear)]
        assert kinds == [SparseConv2d] * 2 + [SparseLinear] * 3
