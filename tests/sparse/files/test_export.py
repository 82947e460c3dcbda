"""Models in one file: architecture as data, loading by non-zeros, ONNX, the command."""

import sys

import pytest
import torch
from helpers.stored import nothing_of_size, tampered, wide
from torch import nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import MaskError, SparseflowError, SparseUnavailable, StoreError
from sparseflow.core.files import load_tensors
from sparseflow.sparse.convert import conversion
from sparseflow.sparse.files import storage
from sparseflow.sparse.files.onnx import export_onnx
from sparseflow.sparse.files.program import build, describe
from sparseflow.sparse.files.storage import load, save
from sparseflow.train.checkpoint import load_state, save_weights

# ---- models that come back


class Residual(nn.Module):
    """What residual networks are made of, and a layer that it does not use."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8))
        self.conv = nn.Conv2d(8, 8, 3, stride=1, padding=1, groups=2, padding_mode="circular")
        self.pool, self.average = nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d((1, None))
        self.act, self.head, self.unused = nn.LeakyReLU(0.2), nn.Linear(48, 3), nn.Linear(3, 3)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        y = self.act(self.conv(x)) + x
        y += x * 0.5
        y = functional.dropout(self.pool(y), 0.5, self.training)
        y = functional.avg_pool2d(torch.cat([y, y], dim=1), 2, stride=2)
        y = self.average(y).relu().view(x.shape[0], -1)
        return functional.log_softmax(self.head(y), dim=1)


def residual():
    torch.manual_seed(0)
    model = Residual()
    model(torch.randn(8, 1, 12, 12))  # so that the norm has something to keep
    masks = sf.make_masks(sf.maskable(model), 0.2)
    masks.apply(model)
    return model, masks, torch.randn(4, 1, 12, 12)


def test_a_model_comes_back_and_computes_the_same(tmp_path):
    model, masks, x = residual()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    save(tmp_path / "m", model, masks, example_input=x)
    assert model.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    again = load(tmp_path / "m", execution="dense")
    assert not again.training
    assert torch.equal(again(x), model.eval()(x))
    assert torch.equal(again(x[:1]), model(x[:1]))
    state = again.state_dict()
    assert {n: t.shape for n, t in before.items() if "unused" not in n} == {
        n: t.shape for n, t in state.items()
    }


def test_without_masks_what_is_not_zero_is_active(tmp_path):
    model, masks, x = residual()
    save(tmp_path / "a", model, masks, example_input=x)
    save(tmp_path / "b", model, example_input=x)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    dense = nn.Sequential(nn.Linear(4, 2))
    save(tmp_path / "d", dense, example_input=torch.ones(1, 4))
    assert set(load_tensors(tmp_path / "d")[0]) == {"weights/0.weight", "weights/0.bias"}


def test_a_loaded_model_can_be_saved_again(tmp_path):
    model, masks, x = residual()
    save(tmp_path / "a", model, masks, example_input=x)
    save(tmp_path / "b", load(tmp_path / "a", execution="dense"), example_input=x)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_are_as_small_as_the_entropy_allows(tmp_path):
    model = nn.Sequential(nn.Linear(1000, 400, bias=False))
    masks = sf.sparsify(model, density=0.05)
    save(tmp_path / "m", model, masks, example_input=torch.ones(1, 1000))
    bound = (0.2864 + 32 * 0.05) / 8 * 400_000
    assert (tmp_path / "m").stat().st_size < 1.02 * bound + 1500


class Loop(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.scale


class Both(nn.Module):
    def forward(self, x, y):
        return x + y


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Odd(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.way = forward

    def forward(self, x):
        return self.way(x)


def hooked():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4)), r"GRU '1' is not a layer"),
        (Loop(), r"Loop cannot be stored: its forward cannot be traced \(TraceError"),
        (Scaled(), r"tensor 'scale' is used outside a layer"),
        (Both(), "Both takes more than one input"),
        (Pair(), "Pair does not return one tensor"),
        (Odd(torch.fft.fft), "'fft_fft' is not a function"),
        (Odd(lambda x: x.cumsum(0)), "'cumsum' is not a function"),
        (Odd(lambda x: x[:, 1]), "the index .* cannot be stored"),
        (Odd(lambda x: functional.softmax(x, 1, dtype=torch.float64)), "called with torch.float64"),
        (hooked(), "'0' has forward hooks"),
        (nn.Sequential(nn.Linear(3, 4)), r"does not run on an input such as .*\[2, 4\]"),
    ],
)
def test_what_a_file_cannot_hold_is_named(tmp_path, model, message):
    with pytest.raises(StoreError, match=message) as caught:
        save(tmp_path / "m", model, example_input=torch.ones(2, 4))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ---- files that are no such models


@pytest.fixture
def stored(tmp_path):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    masks = sf.sparsify(model, density=0.5)
    save(tmp_path / "m", model, masks, example_input=torch.ones(3, 4))
    return tmp_path / "m"


def swap(*place):
    *way, value = place

    def change(tensors, meta):
        inner = meta
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap("program", "layers", "0", 0, "Lstm"), "unknown layer 'Lstm'"),
        (swap("program", "layers", "0", 0, "os.system"), "unknown layer 'os.system'"),
        (swap("program", "layers", "0", 1, {"in_features": 4}), "'0' is a Linear of in_features"),
        (swap("program", "layers", "0", 1, "in_features", "4"), "is malformed"),
        (swap("program", "layers", "0", 1, "in_features", -4), "is malformed"),
        (swap("program", "layers", "__class__", ["ReLU", {"inplace": False}]), "is malformed"),
        (swap("program", "layers", "a b", ["ReLU", {"inplace": False}]), "names a layer 'a b'"),
        (swap("program", "layers", None), "is malformed"),
        (swap("program", None), "is malformed"),
        (
            swap("program", "steps", 1, ["function", "os.system", [], {}]),
            "unknown function 'os.sys",
        ),
        (swap("program", "steps", 1, ["method", "__init__", [], {}]), "unknown method '__init__'"),
        (swap("program", "steps", 1, ["layer", "9", [], {}]), "unknown layer '9'"),
        (swap("program", "steps", 1, ["eval", "1", [], {}]), "unknown eval"),
        (swap("program", "steps", 1, ["method"]), "is malformed"),
        (swap("program", "steps", 0, 2, [{"value": 2}]), "step 0 uses value 2"),
        (swap("program", "steps", 0, 2, [{"value": "x"}]), "step 0 uses value 'x'"),
        (swap("program", "steps", 0, 2, {}), "step 0 has no list of arguments"),
        (swap("program", "steps", 0, 2, []), "does not run on an input"),
        (swap("program", "steps", 1, ["method", "relu", [4], {}]), "does not run on an input"),
        (swap("program", "output", 9), "output 9 is not a value"),
        (swap("input", "shape", [3, 5]), "does not run on an input"),
        (swap("input", "dtype", "torch.int8"), "does not run on an input"),
        (swap("input", None), "does not run on an input"),
        (swap("format", "sparseflow-9"), "holds no model written by sparseflow.save"),
        (swap("shapes", "0.weight", [4, 6]), r"'0.weight' of shape \(4, 6\) is not a weight"),
        (swap("shapes", "0.weight", [2, 2]), "mask of '0.weight' is damaged"),
        (lambda t, m: t.pop("weights/0.bias"), "do not fit its layers: Missing key"),
        (lambda t, m: t.update({"weights/2.bias": torch.ones(7)}), "do not fit its layers: size"),
        (lambda t, m: t.update({"weights/x": torch.ones(7)}), "do not fit its layers: Unexpected"),
    ],
)
def test_tampered_models_are_refused(stored, change, message):
    tampered(stored, change)
    with pytest.raises(StoreError, match=message) as caught:
        load(stored)
    assert str(stored) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_model_and_a_checkpoint_are_refused(stored, tmp_path):
    save_weights(tmp_path / "c", nn.Linear(2, 2), sf.Masks({}), "run", 3)
    with pytest.raises(StoreError, match="holds no model"):
        load(tmp_path / "c")
    stored.write_bytes(stored.read_bytes()[:-5])
    with pytest.raises(StoreError, match="truncated or foreign"):
        load(stored)
    with pytest.raises(StoreError, match="is missing"):
        load(stored.with_name("nothing"))


def test_values_are_forgotten_once_nobody_needs_them():
    program = build(describe(Residual()))
    assert sorted(v for spent in program._spent for v in spent) == list(range(len(program._steps)))


# ---- execution


@pytest.fixture
def no_core(monkeypatch):
    def core():
        raise SparseUnavailable("there is no core here")

    monkeypatch.setattr(conversion, "core", core)


def test_without_the_core_models_run_dense(stored, no_core):
    assert torch.equal(
        load(stored)(torch.ones(1, 4)), load(stored, execution="dense")(torch.ones(1, 4))
    )
    with pytest.raises(SparseUnavailable, match="no core here"):
        load(stored, execution="sparse")


def test_automatic_execution_is_sparse_where_that_is_faster(stored, monkeypatch):
    x, seen = torch.randn(3, 4), []

    def worthwhile(asked):
        assert not asked.model.training
        seen.append((asked.masks.nnz, asked.names, tuple(asked.example[0].shape)))
        return ["2.weight"], {}

    def nowhere(*_):
        raise MaskError("none would be faster")

    dense = load(stored, execution="dense")
    monkeypatch.setattr(storage, "worthwhile", worthwhile)
    sparse = load(stored)
    assert set(dict(sparse.named_parameters())) == {"0.weight", "0.bias", "2.values", "2.bias"}
    torch.testing.assert_close(sparse(x), dense(x), atol=1e-6, rtol=1e-5)
    assert seen == [(18, ["0.weight", "2.weight"], (3, 4))]
    monkeypatch.setattr(storage, "worthwhile", nowhere)
    assert torch.equal(load(stored)(x), dense(x))


def test_sparse_execution_wants_something_to_be_sparse(tmp_path):
    save(tmp_path / "m", nn.Sequential(nn.Linear(4, 4)), example_input=torch.ones(2, 4))
    with pytest.raises(StoreError, match="no masked weight that has a sparse form"):
        load(tmp_path / "m", execution="sparse")
    assert load(tmp_path / "m")(torch.ones(2, 4)).shape == (2, 4)


def test_an_execution_that_is_none(stored):
    with pytest.raises(SparseflowError, match=r"'fast'.*auto"):
        load(stored, execution="fast")


def test_sparse_models_are_stored_and_loaded_without_a_dense_weight(tmp_path):
    model, masks, x = residual()
    model.conv.padding_mode = "zeros"
    save(tmp_path / "a", model, masks, example_input=x)
    sparse = load(tmp_path / "a", execution="sparse")
    torch.testing.assert_close(sparse(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    names = dict(sparse.named_parameters())
    assert {n.replace("weight", "values") for n in masks if "unused" not in n} <= names.keys()
    assert not any(n in names for n in masks)
    save(tmp_path / "b", sparse, example_input=x)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loading_sparse_makes_nothing_of_dense_size(tmp_path):
    model, masks = wide()
    save(tmp_path / "a", model, masks, example_input=torch.ones(1, 3000))
    # A dense weight takes 36 MB; the type checks of the tests look at one mask of 9 MB.
    with nothing_of_size(10_000_000):
        sparse = load(tmp_path / "a", execution="sparse")
    x = torch.randn(3, 3000)
    torch.testing.assert_close(sparse(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_layer_that_has_no_sparse_form_is_loaded_dense(tmp_path):
    model, masks, x = residual()
    save(tmp_path / "a", model, masks, example_input=x)
    sparse = load(tmp_path / "a", execution="sparse")
    names = dict(sparse.named_parameters())
    assert "conv.weight" in names
    assert "head.values" in names
    torch.testing.assert_close(sparse(x), model.eval()(x), atol=1e-5, rtol=1e-5)


# ---- ONNX


@pytest.mark.slow
def test_onnx_computes_the_same_for_any_number_of_examples(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, _, x = residual()
    model.conv.padding_mode = "zeros"
    level = model.training
    export_onnx(tmp_path / "m.onnx", model, example_input=x[:1])
    assert model.training == level
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    for n in (1, 4):
        (out,) = session.run(["output"], {"input": x[:n].numpy()})
        torch.testing.assert_close(torch.from_numpy(out), model.eval()(x[:n]), atol=1e-5, rtol=1e-5)
    assert b"site-packages" not in (tmp_path / "m.onnx").read_bytes()


@pytest.mark.slow
def test_what_onnx_cannot_hold_is_one_line(tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(StoreError, match="Loop cannot be exported to ONNX") as caught:
        export_onnx(tmp_path / "m.onnx", Loop(), example_input=torch.ones(2, 4))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_onnx_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SparseflowError, match=r"pip install 'sparseflow\[onnx\]'"):
        export_onnx(tmp_path / "m.onnx", nn.Linear(4, 4), example_input=torch.ones(2, 4))


# ---- the command


@pytest.mark.slow
def test_export_writes_what_the_run_computes(cli, tmp_path):
    settings = ["train.steps=4", "train.keep=2", "measure.every=4", "measure.evaluate=4"]
    words = [w for s in [*settings, "data.probe=64", "data.limit=300"] for w in ("--set", s)]
    run = cli.json("run", "mlp-mnist/dense", *words)
    file = tmp_path / "net.safetensors"
    row = cli.json("export", run["id"], "--step", "2", "-o", str(file))
    assert (row["step"], row["bytes"]) == (2, file.stat().st_size)
    again = cli.json("export", "mlp-mnist/dense@2", "-o", str(tmp_path / "other"), *words)
    assert again["bytes"] == row["bytes"]
    assert file.read_bytes() == (tmp_path / "other").read_bytes()
    model = load(file, execution="dense")
    checkpoint = tmp_path / "runs" / run["id"] / "checkpoints" / "step-00000002.safetensors"
    weights, _ = load_state(checkpoint, run["id"]).dense()
    assert all(torch.equal(weights[n], t) for n, t in model.state_dict().items())
    assert "no checkpoint at step 3" in cli.fails(
        "export", run["id"], "--step", "3", "-o", str(file)
    )
    assert "exported" in cli("export", run["id"], "-o", str(file))[0]
