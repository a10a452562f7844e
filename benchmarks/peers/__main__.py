"""`python -m benchmarks.peers` makes the peers' environments and says which peers work."""

import subprocess
import sys

from benchmarks.peers.environments import ENVIRONMENTS, FOLDER, PEERS, python


def make(name: str, steps: tuple[str, ...]) -> None:
    """An environment with its pins, once: a file beside it holds what was asked for."""
    pins = FOLDER / f"{name}.txt"
    if pins.exists() and pins.read_text() == "\n".join(steps):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER / name], check=True)
    for step in steps:
        pip = [FOLDER / name / "bin" / "python", "-m", "pip", "install", "-q", *step.split()]
        subprocess.run(pip, check=True)
    pins.write_text("\n".join(steps))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, steps in ENVIRONMENTS.items():
        print(f"{name}: {FOLDER / name}", flush=True)
        try:
            make(name, steps)
        except subprocess.CalledProcessError as error:
            print(f"  not made: {error}")
    for peer in PEERS:
        command = [python(peer), "-c", f"import benchmarks.peers.{peer}"]
        process = python(peer).exists() and subprocess.run(command, capture_output=True)
        works = process and process.returncode == 0
        why = process.stderr.decode().strip().splitlines()[-1:] if process else ["no environment"]
        print(f"{peer}: works" if works else f"{peer}: does not work: {''.join(why)}")


if __name__ == "__main__":
    main()
