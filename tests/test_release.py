"""What a release consists of agrees with itself: data in the wheel, versions, citation, the workflow."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
yaml = pytest.importorskip("yaml")


def test_every_file_of_the_package_that_is_no_python_is_in_the_wheel():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["krs"]
    files = [p.relative_to(ROOT / "krs") for p in (ROOT / "krs").rglob("*") if p.is_file()]
    data = {str(p) for p in files if p.suffix not in (".py", ".pyc")}
    assert {"py.typed", "data/concept.schema.json", "instruments/truth/facts.json"} < data
    # a pattern's star does not cross folders
    lacking = {f for f in data if not any(fnmatch(f, p) and f.count("/") == p.count("/") for p in patterns)}
    assert not lacking


def test_every_folder_of_the_package_is_a_package():
    assert not [p.parent for p in (ROOT / "krs").rglob("*.py") if not (p.parent / "__init__.py").is_file()]


def test_the_citation_is_of_this_version_and_the_readme_has_the_same():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["project"]["version"]
    assert cited["license"] == PROJECT["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (paper,) = cited["references"]
    assert f"{{{paper['title']}}}" in readme
    assert all(author["family-names"] in readme for author in paper["authors"])
    assert f"version = {{{cited['version']}}}" in readme
    assert f"## {cited['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_workflow_does_what_ci_run_does_on_every_python():
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert ".ci/run" in [step.get("run") for step in flow["jobs"]["run"]["steps"]]
    tried = {tuple(job["strategy"]["matrix"]["python"]) for job in flow["jobs"].values()}
    stated = [c.rsplit(" ", 1)[1] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert tried == {tuple(stated)}
    assert PROJECT["project"]["requires-python"] == f">={stated[0]}"


def test_every_data_file_that_is_bundled_has_its_licence_named():
    named = (ROOT / "LICENSES.md").read_text(encoding="utf-8")
    for path in (ROOT / "krs").rglob("*.json"):
        place = path.relative_to(ROOT)
        assert f"`{place}`" in named or f"`{place.parent}/`" in named or "schema" in path.name, place
