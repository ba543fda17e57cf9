"""How Sphinx builds the site: `make docs`. Nothing is fetched and no notebook is run while it does."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

import lume_diff

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "lume_diff"
author = "The lume_diff developers"
project_copyright = "The lume_diff developers"
release = version = lume_diff.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "examples"]

# Markdown and notebooks, which are shown with the outputs that they were saved with. No "dollarmath": a page with LaTeX
# would fetch MathJax, which a closed network does not have; formulas are written in Unicode.
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

# API pages
autosummary_generate = False
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Gradient", "returns_style"), "Source"]

html_theme = "furo"
html_title = "lume_diff"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
pygments_style = "tango"
highlight_language = "text"

# The notebooks stand beside the documents, where users look for them; Sphinx wants them inside.
for _old in (HERE / "tutorials").glob("*.ipynb"):
    _old.unlink()
for _notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
    shutil.copy(_notebook, HERE / "tutorials")

import _api  # noqa: E402 - beside this file

_api.write_pages(HERE / "api" / "generated")


def setup(app: Sphinx) -> None:
    """Let shapes in docstrings be."""
    app.connect("autodoc-process-docstring", lambda *args: _api.literal_stars(args[-1]), priority=100)
