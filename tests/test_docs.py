"""The documentation names what exists: `make docs` needs packages that the tests do not have."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
REFERENCE = re.compile(r"^::: ([\w.]+)\n(?:    options:.*\n)?(?:      .*\n)*", re.MULTILINE)


def found(name: str) -> object:
    """The module, class or function of this dotted name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        parent, _, last = name.rpartition(".")
        return getattr(found(parent), last)


@pytest.mark.parametrize("page", [name for name in PAGES if name.startswith("api/") and name != "api/index.md"])
def test_names_of_the_reference_exist(page):
    entries = list(REFERENCE.finditer(PAGES[page]))
    assert entries
    for entry in entries:
        members = re.search(r"members: \[(.*?)\]", entry[0])
        for member in members[1].split(", ") if members else []:
            assert hasattr(found(entry[1]), member), f"{entry[1]}.{member}"
        assert found(entry[1]).__doc__


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`mcl(?:_jax)?\.([a-z_]\w*(?:\.\w+)*)", "".join(PAGES.values()))))
)
def test_names_in_the_text_exist(name):
    assert found(f"mcl_jax.{name}") is not None


def test_all_pages_are_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    assert sorted(re.findall(r"[\w/-]+\.md", navigation)) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_code_is_python_and_tables_fit(page):
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        compile(code, page, "exec")
    assert all(len(line) <= 100 for line in PAGES[page].splitlines() if line.startswith("|"))


@pytest.mark.parametrize("page", PAGES)
def test_included_files_exist(page):
    for name in re.findall(r'--8<-- "([^"]+)"', PAGES[page]):
        file, _, section = name.partition(":")
        assert f"[start:{section}]" in (ROOT / file).read_text(encoding="utf-8") or not section


@pytest.mark.parametrize("readme", ["README.md", "experiments/README.md", "examples/README.md", "CONTRIBUTING.md"])
def test_files_that_readmes_link_exist(readme):
    folder, text = (ROOT / readme).parent, (ROOT / readme).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([\w./-]+)", text):
        assert link.startswith("http") or (folder / link).exists(), link
