"""The snippets of docs/*.md run as they stand, one after another."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import snippets

pytestmark = pytest.mark.slow
PAGES = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
WITH_CODE = [page for page in PAGES if snippets.blocks(page.read_text(encoding="utf-8"))]


def session(page, folder, monkeypatch):
    """What a page's snippets leave behind."""
    monkeypatch.chdir(folder)
    namespace = {}
    for block in filter(snippets.can_run, snippets.blocks(page.read_text(encoding="utf-8"))):
        snippets.run(block, namespace)
    return namespace


@pytest.mark.parametrize(
    "page", [page for page in WITH_CODE if page.stem != "export"], ids=lambda page: page.stem
)
def test_snippets_run(page, tmp_path, monkeypatch):
    assert session(page, tmp_path, monkeypatch)


def test_links_lead_somewhere():
    assert PAGES
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_export(tmp_path, monkeypatch):
    (page,) = [page for page in PAGES if page.stem == "export"]
    own = session(page, tmp_path, monkeypatch)
    expected = jax.tree.leaves(own["trained"].params)
    for params in (own["params"], own["decoded"], own["restored"]):
        for a, b in zip(jax.tree.leaves(params), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    # As PyTorch computes it: x W^T + b, of the arrays by PyTorch's names.
    arrays, x = own["arrays"], own["digits"].test["x"].reshape(-1, 64)
    assert json.dumps(sorted(arrays)) == '["1.bias", "1.weight", "3.bias", "3.weight"]'
    hidden = np.maximum(x @ arrays["1.weight"].T + arrays["1.bias"], 0)
    scores = hidden @ arrays["3.weight"].T + arrays["3.bias"]
    np.testing.assert_allclose(scores, own["scores"], rtol=1e-4, atol=1e-4)
    if "network" in own:
        theirs = own["network"](own["torch"].tensor(x)).detach().numpy()
        np.testing.assert_allclose(theirs, scores, rtol=1e-4, atol=1e-4)
