"""README.md's snippets run as they stand, one after another."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from tests import snippets
from tests.conftest import standard_promotion

pytestmark = pytest.mark.slow
TEXT = (Path(__file__).parent.parent / "README.md").read_text()
CHINESE = (Path(__file__).parent.parent / "README.zh-CN.md").read_text()
BLOCKS = snippets.blocks(TEXT)


@pytest.fixture(scope="module")
def namespace():
    namespace = {}
    with standard_promotion(), jax.numpy_rank_promotion("allow"):
        exec(BLOCKS[0], namespace)
        namespace["sweep"] = np.asarray(namespace["history"].evaluation)
        exec(BLOCKS[1], namespace)
    return namespace


def test_round_run_and_sweep(namespace):
    accuracy = namespace["sweep"]
    assert accuracy.shape == (3, 30)
    assert accuracy[:, -1].max() > 0.85
    # 30 rounds of 5 clients, both ways; then a round in which client 7 dropped out.
    assert namespace["down"] == namespace["up"] == 30 * 5 * 4 * 650
    assert int(namespace["metrics"].receivers) == 3
    assert int(namespace["metrics"].senders) == 2
    assert namespace["history"].rounds.senders.shape == (3,)


def test_runs_and_sweeps(namespace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the snippet writes to results/
    own = dict(namespace)
    with standard_promotion(), jax.numpy_rank_promotion("allow"):
        exec(BLOCKS[2], own)
    assert own["simulation"].status in ("finished", "stopped")
    assert len(own["results"].runs) == 4 * 2 * 3
    assert own["best"].low < own["best"].mean < own["best"].high
    assert own["best"].mean > 0.8
    assert (tmp_path / "results" / "sweep" / "summary.json").exists()


def test_all_cores(namespace):
    own = dict(namespace)
    with standard_promotion():
        exec(BLOCKS[3], own)
    assert int(own["state"].round) == 1
    assert int(own["metrics"].reporting) == 5


@pytest.mark.parametrize("block", BLOCKS[4:], ids=lambda block: block.splitlines()[0][2:])
def test_your_model(namespace, block):
    own = dict(namespace)
    with standard_promotion():
        exec(block, own)
        algorithm = fs.fedavg(own["loss_fn"], own["optax"].sgd(0.1), own["local"])
        state = fs.init(algorithm, own["params"], own["data"])
        round_fn = jax.jit(fs.make_round(algorithm))
        losses = []
        for _ in range(6):
            cohort = own["sampler"].sample(own["key"], state.round, own["data"])
            state, metrics = round_fn(own["key"], state, own["data"], cohort)
            losses.append(float(metrics.train["loss"]))
    assert losses[-1] < losses[0]
    assert jax.tree.structure(state.params) == jax.tree.structure(own["params"])


def code(text):
    """Fenced blocks, and lines that are indented."""
    lines = re.sub(r"```python\n.*?```", "", text, flags=re.S).splitlines()
    return re.findall(r"```python\n(.*?)```", text, re.S), [x for x in lines if x[:4] == "    "]


@pytest.mark.parametrize("pattern", [r"\]\((?!README)([^)#]+)", r"^#+ "])
def test_the_chinese_one_has_the_same_links_and_headings(pattern):
    found = [re.findall(pattern, text, re.M) for text in (TEXT, CHINESE)]
    assert len(found[0]) > 5
    assert found[0] == found[1]


def test_the_chinese_one_has_the_same_code():
    assert code(CHINESE) == code(TEXT)
    words = [re.sub(r"```.*?```", "", text, flags=re.S).split() for text in (TEXT, CHINESE)]
    names = [set(re.findall(r"`([^`]+)`", " ".join(some))) for some in words]
    assert not names[1] - names[0]


def test_words_that_read_as_translated_stay_away():
    for words in ("被杀死", "通过测试", "同样的位", "应花的时间", "通道", "退出者", "四个联邦平均"):
        assert words not in CHINESE
    for words in ("Pass the tests", "a file a client"):
        assert words not in TEXT
