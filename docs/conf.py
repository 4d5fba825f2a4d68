"""Configuration of the documentation site; CONTRIBUTING.md has the command."""

import importlib
import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import jaxspec

project = "jaxspec"
author = "The jaxspec authors"
copyright = "the jaxspec authors; code Apache-2.0"
version = release = jaxspec.__version__

extensions = [
    "myst_nb",  # Markdown and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.githubpages",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]

# -- Markdown and notebooks

myst_heading_anchors = 4  # `page.md#heading` works as it does on GitHub
nb_execution_mode = "off"  # outputs are stored in the notebooks
nb_execution_cache_path = str(DOCS / "_build" / ".jupyter_cache")
nb_merge_streams = True

# -- Docstrings

# Single backticks link to a name that is documented; others are printed as code.
default_role = "py:obj"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
# The fields of a dataclass as one list; their types are in its signature.
napoleon_custom_sections = [("Attributes", "params_style"), "Source"]

# -- HTML

html_theme = "sphinx_book_theme"
html_title = "jaxspec"
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}
html_show_sourcelink = False
templates_path = []


def _copy_notebooks(app):
    """Copies colab/*.ipynb to docs/notebooks/, which git ignores.

    Links to pages of docs/ are rewritten, and files that did not change are not
    written, so that a second build is quick.
    """
    target = DOCS / "notebooks"
    sources = sorted((ROOT / "colab").glob("*.ipynb"))
    for old in set(target.glob("*.ipynb")) - {target / s.name for s in sources}:
        old.unlink()
    for source in sources:
        notebook = json.loads(source.read_text("utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = "".join(cell["source"]).replace("](../docs/", "](../")
                cell["source"] = text.splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        copy = target / source.name
        if not copy.exists() or copy.read_text("utf-8") != text:
            target.mkdir(exist_ok=True)
            copy.write_text(text, "utf-8")


# Modules on the pages of docs/api/ other than that of the top level.
_NAMESPACES = [
    module
    for page in sorted((DOCS / "api").glob("*.md"))
    for module in re.findall(r"automodule:: (jaxspec\.\S+)", page.read_text("utf-8"))
]


def _documented_as(name):
    """Full name under which a page of a namespace documents a name of the top level."""
    home = getattr(getattr(jaxspec, name), "__module__", None) or ""
    for module in _NAMESPACES:
        if home == module or home.startswith(f"{module}."):
            if hasattr(importlib.import_module(module), name):
                return f"{module}.{name}"
    return None


def _skip_member(app, what, name, thing, skip, options):
    """Omits names of the top level that the page of a namespace documents."""
    if what == "module" and app.env.docname == "api/jaxspec":
        if name in jaxspec.__all__ and _documented_as(name):
            return True
    return None


def _link_members(app, what, name, thing, options, lines):
    """Lists the names omitted above at the end of the top level's docstring."""
    if what == "module" and name == "jaxspec":
        known = filter(None, map(_documented_as, sorted(jaxspec.__all__)))
        links = ", ".join(f":py:obj:`~{full}`" for full in known)
        lines += ["", f"Documented on other pages: {links}.", ""]


def _shorten_types(app, what, name, thing, options, signature, returns):
    """Prints `Array` for `jaxlib._jax.Array`, and `...` for default factories."""

    def short(text):
        text = re.sub(r"\b(jaxlib\._jax|jax\._src(\.\w+)*|jaxtyping)\.", "", text)
        return text.replace("<factory>", "...")

    return signature and short(signature), returns and short(returns)


def setup(app):
    app.connect("builder-inited", _copy_notebooks)
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("autodoc-process-docstring", _link_members)
    app.connect("autodoc-process-signature", _shorten_types)
