"""How the site is built: `python -m sphinx -W --keep-going docs docs/_build`."""

import sys
from pathlib import Path

import fedjax_sim

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "fedjax_sim"
author = "the fedjax_sim authors"
version = release = fedjax_sim.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "llms",
    "written_pages",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
default_role = "code"
autosummary_generate = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
# The list of names of Python's own documentation lies here, so that the site builds offline.
intersphinx_mapping = {"python": ("https://docs.python.org/3", "_inventories/python.inv")}
html_theme = "furo"
html_title = "fedjax_sim"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Where a page of the site comes from is a file of the repository, which readers of the site have.
html_show_sourcelink = False
html_copy_source = False
