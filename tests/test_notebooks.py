"""Notebooks in colab/: complete, clean, and with outputs; `.ci/run` executes them."""

import base64
import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = _PROJECT["urls"]["Repository"]
COLAB = REPOSITORY.replace(
    "https://github.com/", "https://colab.research.google.com/github/"
)
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|work|usr|content|var)/")
each = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)


def cells(file, kind):
    notebook = json.loads(file.read_text("utf-8"))
    return [c for c in notebook["cells"] if c["cell_type"] == kind]


def sources(file, kind):
    return ["".join(cell["source"]) for cell in cells(file, kind)]


def outputs(file):
    return [out for cell in cells(file, "code") for out in cell["outputs"]]


def test_there_are_notebooks_for_all_tasks():
    names = {f.stem for f in NOTEBOOKS}
    tasks = {"generate", "released_weights", "own_images", "own_model"}
    assert names == tasks | {"tpu_slice", "verifiers"}


@each
def test_it_is_a_notebook_of_version_4(file):
    notebook = json.loads(file.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        code = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | code
        assert not cell["metadata"]  # no times of an execution
    counts = [cell["execution_count"] for cell in cells(file, "code")]
    assert counts == list(range(1, len(counts) + 1))  # one run, in order


@each
def test_it_opens_with_a_title_a_badge_and_a_measured_time(file):
    head = sources(file, "markdown")[0]
    assert re.match(r"# \w", head)
    assert f"]({COLAB}/blob/main/colab/{file.name})" in head
    time = "about \\d+ seconds of processor time, measured on two CPU cores"
    assert re.search(time, " ".join(head.split()))


@each
def test_it_installs_on_colab_alone_and_has_small_settings(file):
    install, settings = sources(file, "code")[:2]
    assert f" git+{REPOSITORY}" in install and "--no-deps" in install
    assert 'if "google.colab" in sys.modules' in install
    assert 'os.environ.get("JAXSPEC_SMALL")' in settings
    assert not cells(file, "code")[0]["outputs"]


@each
def test_outputs_are_small_and_have_an_image_and_no_error(file):
    assert file.stat().st_size < 1e6
    images = [out["data"]["image/png"] for out in outputs(file) if "data" in out]
    assert images and all(
        base64.b64decode("".join(image)).startswith(b"\x89PNG") for image in images
    )
    kinds = {out["output_type"] for out in outputs(file)}
    assert kinds <= {"stream", "display_data", "execute_result"}
    streams = [out for out in outputs(file) if out["output_type"] == "stream"]
    assert all(out["name"] == "stdout" for out in streams)


@each
def test_compared_tokens_are_equal(file):
    """`colab/execute.py` fails where they are not."""
    text = "".join("".join(out.get("text", "")) for out in outputs(file))
    found = re.findall(r"\bequal\b.*: (True|False)$", text, re.MULTILINE)
    assert set(found) == ({"True"} if file.stem != "verifiers" else set())


@each
def test_it_names_no_path_of_a_machine(file):
    text = "\n".join(sources(file, "code") + sources(file, "markdown"))
    text += "".join("".join(out.get("text", "")) for out in outputs(file))
    assert not MACHINE_PATH.findall(text)


def test_the_check_of_paths_finds_one():
    assert MACHINE_PATH.findall("saved in /home/me/images")
    assert not MACHINE_PATH.findall("https://example.com/home/x and run/tmp/x")


@each
def test_pages_that_it_links_exist(file):
    for text in sources(file, "markdown"):
        for target in re.findall(r"\]\(([^)#]+)", text):
            known = target.startswith("https://") or (file.parent / target).exists()
            assert known, target


@each
def test_code_is_that_of_a_user(file):
    code = "\n".join(sources(file, "code"))
    assert not re.findall(r"\b(?:from|import) tests\b|jaxspec(?:\.\w+)*\._", code)


def test_the_readme_names_them_with_one_badge():
    readme = (ROOT / "README.md").read_text()
    for file in NOTEBOOKS:
        assert f"(colab/{file.name})" in readme, file.name
    assert readme.count(COLAB) == 1
    assert f"({COLAB}/blob/main/colab/generate.ipynb)" in readme
