"""README.md is short, its code runs as it stands, and README.zh-CN.md is the same in Chinese."""

import re

import numpy as np
import pytest

from tests.helpers import snippets

TEXT = (snippets.ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (snippets.ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_round_a_run_and_a_sweep():
    own = snippets.readme()
    assert int(own["metrics"].receivers) == 50  # all K under `all_clients`
    assert int(own["metrics"].senders) == 5
    accuracy = np.asarray(own["history"].evaluation)
    assert accuracy.shape == (3, 30)
    assert accuracy[:, -1].max() > 0.85


@pytest.mark.parametrize("text", [TEXT, CHINESE], ids=["english", "chinese"])
def test_it_is_short_and_its_code_comes_first(text):
    lines = text.splitlines()
    assert len(lines) <= 150
    (block,) = snippets.blocks(text)
    assert lines.index("```", lines.index("```python")) < 40
    statements = [line for line in block.splitlines() if line and not line.startswith("#")]
    assert 20 <= len(statements) <= 25


@pytest.mark.parametrize("ending", ["fedjax-sim compare", "pytest"])
def test_the_commands_that_ci_runs_are_there_once(ending):
    assert len(re.findall(rf"^    python3 -m venv .*{ending}$", TEXT, re.M)) == 1


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)", TEXT):
        assert (snippets.ROOT / link).exists(), link


def code(text):
    """Fenced blocks, and lines that are indented."""
    lines = re.sub(r"```python\n.*?```", "", text, flags=re.S).splitlines()
    return snippets.blocks(text), [line for line in lines if line[:4] == "    "]


@pytest.mark.parametrize("pattern", [r"\]\((?!README)([^)]+)\)", r"^#+ "])
def test_the_chinese_one_has_the_same_links_and_headings(pattern):
    english, chinese = (re.findall(pattern, text, re.M) for text in (TEXT, CHINESE))
    assert len(english) > 5
    assert english == chinese


def test_the_chinese_one_has_the_same_code():
    assert code(CHINESE) == code(TEXT)
    english, chinese = (
        set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)))
        for text in (TEXT, CHINESE)
    )
    assert not chinese - english


def test_words_that_read_as_translated_stay_away():
    for words in ("被杀死", "通过测试", "同样的位", "应花的时间", "通道", "退出者", "四个联邦平均"):
        assert words not in CHINESE
    for words in ("Pass the tests", "a file a client"):
        assert words not in TEXT
