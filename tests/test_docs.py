"""The README and the docs say what the committed results say, and point at what exists."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rebuild() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rebuild", ROOT / "docs" / "rebuild.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_what_the_committed_results_give() -> None:
    module = rebuild()
    texts = module.blocks()
    for path in module.PAGES:
        page = path.read_text()
        assert module.rebuilt(page, texts) == page
    assert all(f"<!-- {mark} -->" in "".join(p.read_text() for p in module.PAGES) for mark in texts)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
