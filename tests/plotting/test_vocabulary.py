"""What the names of recipes say, also those of initialisations and methods made known later."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import sparseflow as sf
from sparseflow.core.parameters import Layer
from sparseflow.plotting import style
from sparseflow.plotting.palette import variables
from sparseflow.plotting.vocabulary import inits_in_order, mark_of, parse_recipe


def register(name: str) -> None:
    @sf.register_init(name, label="My zeros")
    @dataclass(frozen=True)
    class Zeros(sf.Initialisation):
        def draw(self, layer: Layer, mask: Tensor, stream: torch.Generator) -> Tensor:
            return torch.zeros(layer.shape)


def test_recipes_of_an_initialisation_made_known_later_are_those_of_their_method() -> None:
    assert parse_recipe("rigl-zeros").method == "rigl-zeros"
    register("zeros")
    name = parse_recipe("rigl-zeros")
    assert (name.method, name.init) == ("rigl", "zeros")
    assert mark_of("zeros").label == "My zeros"
    assert inits_in_order(["gone", "zeros", "fan-in", "masked-dense", "zeros"]) == [
        "masked-dense", "fan-in", "zeros", "gone",
    ]  # fmt: skip
    drawn, plain = style.stroke("rigl-zeros"), style.stroke("rigl")
    assert drawn.color == plain.color
    assert (drawn.dashes, drawn.marker) != (plain.dashes, plain.marker)
    assert mark_of("zeros").color[0] in variables()


@pytest.mark.parametrize("recipe", ["rigl-inverted", "prune-restart"])
def test_the_name_of_a_method_is_no_mark(recipe: str) -> None:
    register(recipe.rpartition("-")[2])
    assert parse_recipe(recipe).method == recipe
