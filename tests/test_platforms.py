"""Systems other than the one that tests run on: nothing that POSIX alone has is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_sim

PACKAGE = Path(fedjax_sim.__file__).parent
MODULES = {
    "crypt",
    "curses",
    "fcntl",
    "grp",
    "nis",
    "posix",
    "pty",
    "pwd",
    "readline",
    "resource",
    "spwd",
    "syslog",
    "termios",
    "tty",
}
NAMES = {
    "os": {
        "chown",
        "fork",
        "forkpty",
        "getegid",
        "geteuid",
        "getgid",
        "getgroups",
        "getloadavg",
        "getpgid",
        "getppgid",
        "getuid",
        "killpg",
        "lchown",
        "mkfifo",
        "mknod",
        "nice",
        "openpty",
        "pread",
        "pwrite",
        "register_at_fork",
        "sched_getaffinity",
        "sched_setaffinity",
        "setsid",
        "setuid",
        "statvfs",
        "sysconf",
        "uname",
        "wait",
        "wait3",
        "wait4",
    },
    "signal": {
        "SIGALRM",
        "SIGCHLD",
        "SIGHUP",
        "SIGKILL",
        "SIGQUIT",
        "SIGUSR1",
        "SIGUSR2",
        "alarm",
        "pause",
        "pthread_kill",
        "pthread_sigmask",
        "setitimer",
        "siginterrupt",
        "sigwait",
    },
    "socket": {"AF_UNIX"},
    "time": {"clock_gettime", "pthread_getcpuclockid", "tzset"},
}


def asked_for(source):
    """What of POSIX alone a module imports or names, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if node.module in MODULES:
                yield node.module
            names = NAMES.get(node.module or "", set())
            yield from (f"{node.module}.{name.name}" for name in node.names if name.name in names)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            module, _, attribute = name.rpartition(".")
            if attribute in NAMES.get(module, set()):
                yield name


def test_nothing_that_posix_alone_has_is_named():
    for path in PACKAGE.rglob("*.py"):
        assert not list(asked_for(path.read_text("utf-8"))), path


def test_what_is_looked_for_is_found():
    source = "def f():\n    import fcntl\n    os.fork()\nfrom signal import SIGKILL\nimport os, pwd"
    assert sorted(asked_for(source)) == ["fcntl", "os.fork", "pwd", "signal.SIGKILL"]
    assert not list(asked_for("getattr(os, 'sched_getaffinity', None)\nfrom signal import SIGINT"))


WITHOUT_POSIX = f"""
import sys
sys.modules |= dict.fromkeys({sorted(MODULES - {"posix"})})
import os, signal
for name in {sorted(NAMES["os"])}:
    # What other libraries ask of a POSIX system is left.
    if name not in ("geteuid", "getuid", "register_at_fork", "uname") and hasattr(os, name):
        delattr(os, name)
import fedjax_sim
from fedjax_sim.cli import main
assert "fedjax_sim.datasets" not in sys.modules
import fedjax_sim.datasets, fedjax_sim.reproduce
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_compare_on_a_system_without_posix(tmp_path):
    arguments = [
        "compare",
        "--rounds",
        "2",
        "--clients",
        "5",
        "--fractions",
        "0.5",
        "--seeds",
        "1",
        "--modes",
        "selected",
        "--cores",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    subprocess.run([sys.executable, "-c", WITHOUT_POSIX, *arguments], check=True, timeout=300)
    assert (tmp_path / "out" / "compare.png").exists()
