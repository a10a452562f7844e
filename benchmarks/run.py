"""Ours and the peers on the jobs: `python -m benchmarks.run [JOB...]`.

One process for each implementation and setting, all warm, repetitions interleaved. Writes
records/results.json, RESULTS.md and results.png; jobs that were not run keep their figures.
`python -m benchmarks.peers` makes the peers' environments first.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import RECORDS, floor, report
from benchmarks.jobs import JOBS, Job
from benchmarks.peers import environments
from benchmarks.worker import SWEPT

HERE = Path(__file__).parent
# Of the distance moved. Seen: rounding up to 3e-4, a ReLU at its kink 3e-3; a learning rate 1%
# off 1e-2, blocks in another order 2e-2, equal weights or a lost short block 0.3.
TOLERANCE = 5e-3
PRUNE = 1.25  # a thread setting this much slower than the peer's best is timed once


class Process:
    """A worker: `ask` sends it a command and waits for the answer."""

    def __init__(self, name: str, setting: str, job: str) -> None:
        self.name, self.setting = name, setting
        module = "benchmarks.ours" if name == "ours" else f"benchmarks.peers.{name}"
        program = sys.executable if name == "ours" else str(environments.python(name))
        environment = os.environ | {
            "WORKER_STARTED": str(time.time()),
            "WORKER_SETTING": setting,
            "JAX_PLATFORMS": "cpu",
        }
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the worker
        self.process: Any = None
        if Path(program).exists():
            self.process = subprocess.Popen(
                [program, "-m", module, job, setting],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=environment,
                cwd=HERE.parent,
                text=True,
            )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        if self.process is None:
            return {"error": "no environment: run python -m benchmarks.peers"}
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        self.errors.seek(0)
        return {"error": "".join(self.errors.read().strip().splitlines()[-1:])[:300]}

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def all_settings(job: Job, peers: list[str], ours: list[str]) -> list[tuple[str, str]]:
    threads = [(p, t) for p in job.peers if p in peers for t in environments.THREADS]
    return [("ours", setting) for setting in ours] + threads


def lane_settings(job: Job) -> list[str]:
    """One device each, so that the lanes alone differ."""
    counts = [str(n) for n in (1, 2, 4, 8, 16, 32) if n <= job.m]
    return [f"packed:{n}" for n in [*counts, "None"]] + ["vmapped"]


def check_equal(job: Job, entries: list[dict[str, Any]], processes: list[Process]) -> None:
    """Two rounds without shuffling end in the same weights, after the same steps."""
    first, reference = job.first(), None
    with tempfile.TemporaryDirectory() as folder:
        for entry, process in zip(entries, processes, strict=True):
            if "error" in entry:
                continue
            path = f"{folder}/{process.name}-{process.setting}.npz"
            answer = process.ask("check", path=path)
            if "error" in answer:
                entry["error"] = answer["error"]
                continue
            weights = dict(np.load(path))
            reference = weights if reference is None else reference
            moved = sum(np.sum((reference[k] - first[k]) ** 2) for k in first)
            apart = sum(np.sum((reference[k] - weights[k]) ** 2) for k in first)
            entry["apart"] = float(np.sqrt(apart / moved))
            steps = job.small().steps(job.small().cohorts())
            if not entry["apart"] < TOLERANCE or answer["steps"] != steps:
                raise SystemExit(
                    f"{job.name}: {process.name} {process.setting} does other work than ours: "
                    f"{entry['apart']:.1e} apart, {answer['steps']} steps for {steps}"
                )


def run_job(job: Job, settings: list[tuple[str, str]], repeats: int) -> dict[str, Any]:
    entries, processes = [], []
    for name, setting in settings:
        process = Process(name, setting, job.name)
        answer = process.ask("prepare")
        outcome = answer.get("error") or f"{answer['pilot']:.3f} s"
        print(f"  {name} {setting}: {outcome}", flush=True)
        entries.append({"implementation": name, "setting": setting, "seconds": [], **answer})
        processes.append(process)
    check_equal(job, entries, processes)
    best: dict[str, float] = {}
    for e in entries:
        if "error" not in e:
            best[e["implementation"]] = min(best.get(e["implementation"], np.inf), e["pilot"])
    for i in range(repeats):
        for entry, process in zip(entries, processes, strict=True):
            name = entry["implementation"]
            if "error" in entry or (name != "ours" and entry["pilot"] > PRUNE * best[name] and i):
                continue
            answer = process.ask("time")
            configurations = 1 if job.sweep == 1 else job.sweep if name == "ours" else SWEPT
            expected = job.steps(job.cohorts()[: job.rounds]) * configurations
            if answer["steps"] != expected:
                raise SystemExit(f"{job.name}: {name} did {answer['steps']} of {expected} steps")
            entry["seconds"].append(answer["seconds"])
            entry["steps"], entry["peak_memory"] = answer["steps"], answer["peak_memory"]
    for entry, process in zip(entries, processes, strict=True):
        if entry["implementation"] == "ours" and "error" not in entry:
            answer = process.ask("lane_steps")
            if "error" not in answer:
                entry["useful"] = answer["steps"] / answer["lane_steps"]
        process.close()
    for entry in entries:
        if entry["seconds"]:
            scale = 1e6 / entry["steps"]
            entry["us"] = statistics.median(entry["seconds"]) * scale
            entry["us_range"] = [min(entry["seconds"]) * scale, max(entry["seconds"]) * scale]
    return {"entries": entries}


def lanes_table(job: Job, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours on one device by lanes, beside the best that longest-first can do with them."""
    steps = -(-job.sizes()[job.cohorts()[0]] // job.batch_size) * job.epochs
    for entry in result["entries"]:
        lanes = entry["setting"].partition(":")[2]
        if lanes.isdigit():
            entry["best_useful"] = floor.longest_first(steps, int(lanes))
    return result["entries"]


def ceilings() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.ceilings"]
    return json.loads(
        subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True).stdout
    )


def machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    )
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": names[0] if names else platform.processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)}; all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", default=",".join(environments.PEERS), help="comma-separated")
    parser.add_argument("--ours", default="default", help="settings, comma-separated; '' for none")
    parser.add_argument(
        "--lanes", action="store_true", help="and FedAvg of ours by lanes, on one device"
    )
    parser.add_argument("--quick", action="store_true", help="twice each; writes nothing")
    options = parser.parse_args()
    repeats = 2 if options.quick else options.repeats
    unknown = set(options.jobs) - set(JOBS)
    if unknown:
        parser.error(f"JOB must be one of {', '.join(JOBS)}; got {', '.join(unknown)}")

    path = RECORDS / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    machine_before = machine()  # before this run's own files make the tree dirty
    for name in options.jobs or JOBS:
        job = JOBS[name]
        print(name, flush=True)
        settings = all_settings(
            job, options.peers.split(","), [s for s in options.ours.split(",") if s]
        )
        rounds = job.cohorts()[: job.rounds]
        per_round = job.steps(rounds) * job.sweep / job.rounds
        measured = ceilings()
        result = run_job(job, settings, repeats) | {
            "ceilings": measured,
            "machine": machine_before,
            "repeats": repeats,
            "steps_per_round": per_round,
            "rounds": job.rounds,
            "sweep": job.sweep,
            "floor_us": floor.seconds(job, 1, measured) * 1e6,
        }
        if options.lanes and job.has_lanes:
            by_lanes = run_job(job, [("ours", s) for s in lane_settings(job)], repeats)
            result["lanes"] = lanes_table(job, by_lanes)
        results[name] = result
        print(report.table({name: result}), flush=True)
        if not options.quick:
            results = {name: results[name] for name in JOBS if name in results}
            path.write_text(json.dumps(results, indent=1) + "\n")
            (RECORDS / "RESULTS.md").write_text(report.markdown(results))
            report.plot(results, RECORDS / "results.png")


if __name__ == "__main__":
    main()
