"""Shared fixtures; shapes in annotations are checked in tests only."""

from jaxtyping import install_import_hook

install_import_hook("sparseflow", "beartype.beartype")
