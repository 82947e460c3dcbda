import ast
import importlib
import json
from pathlib import Path

import pytest

import sparseflow

STUB = Path(sparseflow.__file__).with_suffix(".pyi")
IMPORTS = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
PLACES = [(alias.name, node.module) for node in IMPORTS for alias in node.names]
DECLARED = sorted(name for name, _ in PLACES)


def test_importing_the_package_does_not_import_torch(elsewhere):
    code = "import json, sys, sparseflow; print(json.dumps(list(sys.modules)))"
    imported = set(json.loads(elsewhere(code)))
    assert "sparseflow" in imported
    assert not imported & {"torch", "numpy", "scipy", "matplotlib", "sparseflow.core"}


def test_each_name_is_declared_once_and_exported_under_its_own_name():
    assert len(set(DECLARED)) == len(DECLARED)
    assert all(alias.asname == alias.name for node in IMPORTS for alias in node.names)
    assert sorted(sparseflow.__all__) == DECLARED
    assert dir(sparseflow) == DECLARED


@pytest.mark.parametrize(("name", "submodule"), PLACES)
def test_every_declared_name_resolves(name, submodule):
    module = importlib.import_module(f"sparseflow.{submodule or name}")
    assert getattr(sparseflow, name) is (getattr(module, name) if submodule else module)


def test_every_room_but_the_command_line_is_reachable():
    rooms = {path.parent.name for path in STUB.parent.glob("*/__init__.py")} | {"init"}
    assert rooms - set(DECLARED) == {"cli"}


def test_what_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="no_such_name"):
        sparseflow.no_such_name  # noqa: B018
