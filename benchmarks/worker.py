"""One implementation of one job in a process of its own, waiting on stdin for what to do.

It imports nothing but NumPy: ours and the peers, in their environments, share it.
"""

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.jobs import JOBS, Job, Weights

SWEPT = 4  # learning rates of a sweep that a peer trains: it has no faster way than one by one


class Worker:
    """What each implementation fills in, and the commands made of it."""

    versions: tuple[str, ...] = ()  # packages whose versions are reported
    compiles = False  # and so needs a repetition to warm up

    def __init__(self, job: Job, setting: str) -> None:
        """Builds the federation and the model."""
        self.job, self.setting = job, setting
        self.started = float(os.environ.get("WORKER_STARTED", time.time()))

    def reset(self, learning_rate: float) -> None:
        """Back to the first weights."""
        raise NotImplementedError

    def train(self, cohorts: np.ndarray, shuffle: bool) -> int:
        """Trains these rounds [R, m] from where it is; returns the client-steps done."""
        raise NotImplementedError

    def weights(self) -> Weights:
        raise NotImplementedError

    def train_all(self) -> int:
        """One repetition of the job: the client-steps done."""
        rates = self.job.learning_rates()
        if len(rates) == 1:
            return self.train(self.job.cohorts()[: self.job.rounds], True)
        steps = 0
        for rate in rates[:: len(rates) // SWEPT]:
            self.reset(float(rate))
            steps += self.train(self.job.cohorts()[: self.job.rounds], True)
        return steps

    def prepare(self) -> dict[str, Any]:
        """The first round, and then repetitions until it is warm."""
        from importlib.metadata import version

        self.reset(self.job.learning_rate)
        start = time.perf_counter()
        self.train(self.job.cohorts()[:1], True)
        pilot, first = time.perf_counter() - start, time.time() - self.started
        if self.compiles:
            self.train_all()
        if self.compiles or self.job.rounds > 1:
            pilot = self.time()["seconds"]
        versions = {name: version(name) for name in self.versions}
        return {"first_round": first, "pilot": pilot, "versions": versions}

    def time(self) -> dict[str, Any]:
        start = time.perf_counter()
        steps = self.train_all()
        return {"seconds": time.perf_counter() - start, "steps": steps}

    def check(self, path: str) -> dict[str, Any]:
        """Writes the weights after two rounds of the small job, without shuffling."""
        job = self.job.small()
        worker = type(self)(job, self.setting)
        worker.reset(job.learning_rate)
        steps = worker.train(job.cohorts(), False)
        np.savez(path, **worker.weights())
        return {"steps": steps}


def peak_memory() -> int:
    """Bytes this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start from that of the process which started this one
        (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(make: type[Worker]) -> None:
    """`python -m MODULE JOB SETTING`: one JSON request a line in, one JSON answer a line out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or make(JOBS[sys.argv[1]], sys.argv[2])
            answer = getattr(worker, request.pop("do"))(**request)
            answer["peak_memory"] = peak_memory()
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers, flush=True)
