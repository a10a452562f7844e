"""The snippets of docs/*.md run as they stand, one after another."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.sweeps.shards import shard_of
from tests.helpers import declared, snippets, which

DOCS = snippets.ROOT / "docs"
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}


@pytest.fixture(scope="module")
def readme():
    return snippets.readme()


@pytest.fixture
def session(readme, tmp_path, monkeypatch):
    """Runs a page in a folder of its own; returns what its snippets leave behind."""
    monkeypatch.chdir(tmp_path)

    def run(page):
        continues = re.search(r"continues? the\s+code of the", TEXTS[page])
        namespace = dict(readme) if continues else {}
        for block in filter(snippets.can_run, snippets.blocks(TEXTS[page])):
            snippets.run(block, namespace)
        return namespace

    return run


def slugs(text):
    """The anchors of its headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    words = (re.sub(r"[^\w -]", "", heading).strip() for heading in headings)
    return {heading.lower().replace(" ", "-") for heading in words}


def test_links_lead_somewhere():
    pages = {DOCS / f"{name}.md": text for name, text in TEXTS.items()}
    for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "ARCHITECTURE.md"):
        pages[snippets.ROOT / name] = (snippets.ROOT / name).read_text(encoding="utf-8")
    for page, text in pages.items():
        for link, anchor in re.findall(r"\]\(([^)#:]+)(?:#([^)]+))?\)", text):
            target = page.parent / link
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                assert anchor in slugs(target.read_text(encoding="utf-8")), f"{page.name}: {anchor}"


def test_the_first_page_lists_the_others():
    """In sentences for who reads the file, and in the side bar of the site."""
    listed = re.findall(r"^- \[.*?\]\(([\w-]+)\.md\)", TEXTS["index"], re.M)
    assert sorted([*listed, "index"]) == sorted(TEXTS)
    bar = re.findall(r":hidden:\n(.*?)```", TEXTS["index"], re.S)
    assert [page for page in "".join(bar).split() if "/" not in page] == listed


def test_a_language_model_is_told_of_every_page(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_extensions")
    text = importlib.import_module("llms").text(TEXTS["index"])
    pages = re.findall(r"^- \[.*?\]\(([\w-]+)\.html\): ", text, re.M)
    assert sorted([*pages, "index"]) == sorted(TEXTS)
    assert text.startswith("# fedjax_sim\n\n> Federated learning in JAX: ")


def test_commands_say_where_their_results_go():
    """`run` and `sweep` need --out; a line that has none ends with an error as it stands."""
    readme = (snippets.ROOT / "README.md").read_text(encoding="utf-8")
    for page, text in {**TEXTS, "README": readme}.items():
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if re.match(r"    (fedjax-sim|srun fedjax-sim) (run|sweep) ", line):
                assert " --out " in line, f"{page}: {line}"


TASKS = {
    "install": "start",
    "compare": "two-readings",
    "my own data": "data",
    "with dropout": "models",
    "my own algorithm": "algorithms",
    "median": "rounds",
    "model of its own": "personal",
    "my own loop": "rounds",
    "elsewhere": "export",
    "notebook": "notebooks",
    "all cores, or a GPU": "cores",
    "cluster": "clusters",
}


@pytest.mark.parametrize("task", TASKS)
def test_a_newcomer_comes_to_every_task_in_two_clicks(task):
    """From the first page to the start page, and from its table to the page of the task."""
    assert "](start.md)" in TEXTS["index"]
    table = TEXTS["start"].partition("## Where to go from here")[2]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    row = next(line for line in rows if task in line.split("|")[1])
    assert TASKS[task] == "start" or f"({TASKS[task]}.md" in row
    assert snippets.blocks(TEXTS[TASKS[task]]) or task == "notebook"


def test_what_a_setting_may_name_is_what_files_declare():
    assert TEXTS["declared"] == declared.page(), "run what the page says of how it is written"


def test_the_table_of_algorithms_is_what_files_declare():
    assert TEXTS["which"] == which.page(), "run what the page says of how it is written"


def test_every_page_with_snippets_is_run_below():
    have = {name for name, text in TEXTS.items() if snippets.blocks(text)}
    pages = "algorithms contract cores data export models personal privacy rounds runs start store"
    more = "asynchronous clusters coming-from compression large-models robustness surprises time"
    assert have == {*pages.split(), *more.split(), "two-readings"}


@pytest.mark.slow
def test_start(session, tmp_path):
    own = session("start")
    assert own["result"].mean["accuracy"] > 0.7
    for before, after in zip(
        *map(jax.tree.leaves, (own["state"].params, own["params"])), strict=True
    ):
        np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_the_two_readings(session):
    own = session("two-readings")
    assert 0 < own["share"] < 0.5
    assert max(jax.tree.leaves(own["apart"])) < 1e-7


@pytest.mark.slow
def test_surprises(session):
    own = session("surprises")
    assert own["steps"].epochs * -(-65 // own["steps"].batch_size) == 14
    assert own["of_each"].shape == (1,)
    assert abs(own["overall"] - own["of_each"][0]) < 1e-6


@pytest.mark.slow
def test_time(session):
    own = session("time")
    assert (np.asarray(own["simulation"].history.rounds.seconds) > 0).all()
    assert np.asarray(own["history"].rounds.seconds).max() <= 5
    assert (int(own["cohort"].client_ids[0]), int(own["cohort"].mask.sum())) == (3, 1)


@pytest.mark.slow
def test_large_models(session):
    own = session("large-models")
    assert own["needed"].clients == 50 * 4 * 650
    assert (own["sent"], own["whole"]) == (4 * 2 * (64 + 10), 4 * 650)
    assert own["accuracy"] > 0.3


@pytest.mark.slow
def test_clusters(session):
    own = session("clusters")
    assert len(own["results"].runs) == 6
    assert own["results"].best("error", lowest=True).configuration == {"lr": 0.4}


def test_the_files_for_schedulers_can_be_read():
    files = re.findall(r"^```(bash|yaml)\n(.*?)^```", TEXTS["clusters"], re.M | re.S)
    assert [language for language, _ in files] == ["bash", "yaml", "bash"]
    for language, text in files:
        if language == "bash" and shutil.which("bash"):
            subprocess.run(["bash", "-n"], input=text.encode(), check=True)
        shard = re.search(r'--shard"?,? "?([\w/]+)', text)
        if shard and "SBATCH" not in text:
            assert shard_of(shard[1], {"JOB_COMPLETION_INDEX": "0"}) == (1, 16)
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(files[1][1])
    assert job["spec"]["completionMode"] == "Indexed"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][container["command"].index("--shard") + 1] == (
        f"auto/{job['spec']['completions']}"
    )
    mounts, volumes = container["volumeMounts"], job["spec"]["template"]["spec"]["volumes"]
    assert [mount["name"] for mount in mounts] == [volume["name"] for volume in volumes]


@pytest.mark.slow
def test_coming_from(session):
    own = session("coming-from")
    assert own["history"].rounds.train["loss"].shape == (30,)


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    """All pages, the reference of all public names, and no warning: no link that leads nowhere."""
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees"]
    # A copy, since pages are written beside the others.
    for name in ("docs", "benchmarks/records"):
        shutil.copytree(snippets.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_*d"))
    for page in snippets.ROOT.glob("*.md"):
        shutil.copy(page, tmp_path)
    subprocess.run(
        [*command, tmp_path / "docs", tmp_path / "site"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(snippets.ROOT)},
    )
    whole = "".join(page.read_text() for page in (tmp_path / "site" / "_written" / "api").glob("*"))
    for name in fs.__all__:
        assert f'id="fedjax_sim.{name}' in whole or f"fs.{name}<" in whole, name


@pytest.mark.slow
def test_contract(session, capsys):
    """What is printed is what the page says, but for the rounding."""
    own = session("contract")
    _, said = TEXTS["contract"].split("```text\n", 1)
    expected = re.sub("to [0-9.]*e-[0-9]+", "to", said.split("```")[0])
    assert re.sub("to [0-9.]*e-[0-9]+", "to", capsys.readouterr().out).startswith(expected)
    assert len(own["certificate"].lines) == 10


@pytest.mark.slow
def test_rounds(session):
    own = session("rounds")
    # 10 rounds of 5 clients, both ways; then a round in which client 7 dropped out.
    assert own["down"] == own["up"] == 10 * 5 * 4 * 650
    assert int(own["metrics"].receivers) == 3
    assert int(own["metrics"].senders) == 2
    assert own["history"].rounds.senders.shape == (3,)


@pytest.mark.slow
def test_runs(session, tmp_path):
    own = session("runs")
    assert [m.configuration["rule"] for m in own["readings"].mean("test_accuracy")] == [
        *own["rules"]
    ]
    assert own["simulation"].status in ("finished", "stopped")
    assert len(own["results"].runs) == 4 * 2 * 3
    assert own["best"].low < own["best"].mean < own["best"].high
    assert own["best"].mean > 0.8
    assert (tmp_path / "results" / "sweep" / "summary.json").exists()
    assert fs.load(tmp_path / "results" / "run").params
    assert 0.15 < own["held"].mean() < 0.25


@pytest.mark.slow
def test_cores(session):
    own = session("cores")
    assert int(own["state"].round) == 5
    assert int(own["metrics"].reporting) == 5


@pytest.mark.slow
def test_data(session):
    own = session("data")
    assert own["split"].classes_per_client == 2
    assert set(own["angles"].tolist()) <= {0, 90, 180, 270}
    assert own["homes"].client_names == ("anna", "bo")
    assert own["data"].num_clients == 2
    assert own["data"].client_names == own["test"].client_names == ("anna", "bo")
    assert own["test"].num_examples.tolist() == [3, 3]
    classes = fs.partition.describe(own["test_ids"], own["test_labels"], 20).classes_per_client
    assert classes == 2
    accuracies = own["result"].clients["accuracy"]
    assert accuracies.shape == (20,)
    assert own["result"].mean["accuracy"] > 0.5
    assert own["round_fn"]._cache_size() == 1
    assert int(own["metrics"].reporting) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", snippets.blocks(TEXTS["models"]), ids=lambda block: block.splitlines()[0][2:]
)
def test_models(readme, block):
    own = dict(readme)
    snippets.run(block, own)
    algorithm = fs.fedavg(own["loss_fn"], own["optax"].sgd(0.1), own["local"])
    if "normed" in own:
        algorithm = fs.with_statistics(algorithm, own["normed"].apply)
    state = fs.init(algorithm, own["params"], own["data"])
    round_fn = jax.jit(fs.make_round(algorithm))
    losses = []
    for _ in range(6):
        cohort = own["sampler"].sample(own["key"], state.round, own["data"])
        state, metrics = round_fn(own["key"], state, own["data"], cohort)
        losses.append(float(metrics.train["loss"]))
    assert losses[-1] < losses[0]
    assert jax.tree.structure(state.params) == jax.tree.structure(own["params"])


@pytest.mark.slow
def test_personal(session):
    own = session("personal")
    # Of 650 parameters the ten biases stay with the client.
    assert own["down"] == own["up"] == 4 * 640
    before, after = (float(x.mean["accuracy"]) for x in own["tuned"])
    assert after > before > 0.5
    measured = own["simulation"].history.evaluation["test_accuracy"][-1]
    assert float(measured) == pytest.approx(before, abs=1e-6)


@pytest.mark.slow
def test_store(session):
    own = session("store")
    assert own["states"].num_written > 300
    assert own["store"].num_clients == 2000
    assert 0 < float(own["result"].mean["loss"]) < 10


@pytest.mark.slow
def test_compression(session):
    own = session("compression")
    assert (own["up"], own["loss"] < 0.5) == (30 * 4 * 24, True)


@pytest.mark.slow
def test_privacy(session):
    own = session("privacy")
    assert 7.9 < own["spent"] <= 8
    assert int(own["simulation"].state.round) == 30


@pytest.mark.slow
def test_robustness(session):
    own = session("robustness")
    accuracies = {
        tuple(x.configuration.values()): x.mean for x in own["results"].mean("test_accuracy")
    }
    assert len(accuracies) == 8
    flipped = [accuracies[rule, "sign flip", 0.3] for rule in ("mean", "median")]
    assert flipped[0] < 0.3 < 0.6 < flipped[1]


@pytest.mark.slow
def test_asynchronous(session):
    own = session("asynchronous")
    assert own["simulated"] > 0
    assert own["rounds"].staleness["max"].max() > 1
    assert own["simulation"].history.evaluation["test_accuracy"][-1] > 0.5
    assert len(own["results"].runs) == 4


@pytest.mark.slow
def test_algorithms(session):
    own = session("algorithms")
    kept = jax.tree.leaves(own["state"].clients)[0]
    assert (np.asarray(kept) != 0).tolist() == [False, True, False, True]


@pytest.mark.slow
def test_export(session):
    own = session("export")
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


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    """Outputs would differ by machine, and the pictures are those that the reader's code makes."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    assert f"notebooks/{path.name}" in TEXTS["notebooks"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path):
    pytest.importorskip("nbmake")
    shutil.copy(path, tmp_path)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--nbmake",
        "-q",
        path.name,
    ]
    environment = {**os.environ, "PYTHONPATH": str(snippets.ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:]
