"""What several processes do together.

    python -m tests.helpers.several INDEX COUNT PORT DEVICES OUT JOBS

It stands apart from conftest, which starts JAX: here JAX starts once the processes know each other.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fedjax_sim as fs
from fedjax_sim.host.prepared import PreparedRun
from fedjax_sim.host.processes import processes_of

ROUNDS = 40
HEARTBEAT = 20  # seconds without a sign of life after which a process counts as gone
SECONDS = 240  # that a start may take, of a machine with much else to do; nothing waits longer


def loss_fn(params, batch, key):
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


def experiment(mesh, lr=0.03, inner=None, num_rounds=ROUNDS):
    rng = np.random.default_rng(3)
    clients = [rng.normal(size=(n, 5)).astype(np.float32) for n in (5, 12, 0, 1, 7, 23, 3, 9)]
    data = fs.FederatedData.from_clients([{"x": c[:, :4], "y": c[:, 4]} for c in clients])
    return fs.Experiment(
        fs.scaffold(loss_fn, lr, fs.LocalTraining(2, 3)),
        {"w": np.zeros(4, np.float32), "b": np.zeros((), np.float32)},
        data,
        fs.sampling.uniform(3),
        num_rounds,
        execution=fs.execution.sharded(mesh, inner or fs.execution.vmapped()),
        evaluate=lambda params: {"b": params["b"], "norm": jnp.sum(params["w"] ** 2)},
        evaluate_every=7,
    )


def on_source(mesh):
    whole = experiment(mesh)
    return whole._replace(data=fs.data.Source.of(whole.data))


def numbers(run):
    """All numbers of a run, as JSON has them; float32 comes through it whole."""
    return [np.asarray(x).tolist() for x in jax.tree.leaves((run.state, run.history))]


def message_of(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


class Jobs:
    """Each is done by all processes; what it returns is written by each."""

    def __init__(self, mesh, out):
        self.mesh, self.out, self.me = mesh, out, jax.process_index()

    def simulate(self, name=None, **options):
        out = None if name is None else self.out / name
        experiment_ = options.pop("experiment", None) or experiment(self.mesh)
        return fs.simulate(experiment_, 5, out=out, **options)

    def replicate(self):
        tree = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "key": jax.random.key(3)}
        placed = fs.execution.replicate(tree, self.mesh)
        again = fs.execution.replicate(placed, self.mesh)
        dealt = jax.make_array_from_callback(
            (self.mesh.size,),
            NamedSharding(self.mesh, PartitionSpec("clients")),
            lambda index: np.ones(1, np.float32),
        )
        others = [d for d in jax.devices() if d.process_index != self.me]

        def refusal(tree, mesh=self.mesh):
            return message_of(fs.execution.replicate, tree, mesh)

        return {
            "values": np.asarray(again["a"]).tolist(),
            "bits": np.asarray(jax.random.key_data(again["key"])).tolist(),
            "devices": len(placed["a"].sharding.device_set),
            "own": sorted(shard.device.id for shard in again["a"].addressable_shards),
            "local": sorted(device.id for device in jax.local_devices()),
            "cores": [d.process_index for d in fs.execution.cores().devices.flat],
            "other values": refusal({"a": np.full(3, self.me)}),
            "other shapes": refusal({"a": np.zeros(3 + self.me)}),
            "dealt": refusal({"a": dealt}),
            "of others": refusal(tree, Mesh(np.array(others), ("clients",))),
        }

    def whole(self):
        run = self.simulate(keep_model="best", metric="norm")
        assert all(x.is_fully_addressable for x in jax.tree.leaves(run.state))
        best = [np.asarray(run.best.params["w"]).tolist(), int(run.best.round)]
        return {"status": run.status, "numbers": numbers(run), "best": best}

    def interrupted(self, victim=0):
        """A signal reaches one of them; then all go on from what is saved."""
        pids = self.out / f"pid-{self.me}"
        pids.write_text(str(os.getpid()))
        told, name = [], f"signal to {victim}"

        def on_progress(progress):
            told.append(progress.round)
            if progress.round == 10:
                os.kill(int((self.out / f"pid-{victim}").read_text()), signal.SIGTERM)

        part = self.simulate(name, checkpoint_every=5, on_progress=on_progress)
        there = sorted(int(path.name) for path in (self.out / name / "checkpoints").iterdir())
        whole = self.simulate(name, resume=True)
        return {
            "status": part.status,
            "round": int(part.state.round),
            "rows": len(part.history.evaluated),
            "saved": there,
            "told": told,
            "numbers": numbers(whole),
            "model": fs.load(self.out / name).round,
        }

    def interrupted_by_the_other(self):
        return self.interrupted(victim=1)

    def left(self):
        """The writer goes on alone when the other one has been killed without a word."""
        processes_of(self.mesh).gather(None)  # from now on they are connected
        self.left_early()

    def left_early(self):
        """Before they have exchanged anything."""
        if self.me:
            os.kill(os.getpid(), signal.SIGKILL)
        message = message_of(self.simulate, "left")
        (self.out / "answers-0.json").write_text(json.dumps(message))
        os._exit(0)  # an orderly end would wait for the other one

    def refused(self):
        """Of what differs between the processes, or fails in one of them."""

        def refusal(**options):
            return message_of(self.simulate, **options)

        (self.out / "there").mkdir(exist_ok=True)
        (self.out / "there" / "experiment.json").write_text("{}")
        inner = (fs.execution.vmapped(), fs.execution.packed(1))[self.me]
        return {
            "configuration": refusal(configuration={"lr": self.me, "text": "long " * 200}),
            "rate": refusal(experiment=experiment(self.mesh, lr=0.03 + self.me)),
            "strategy": refusal(experiment=experiment(self.mesh, inner=inner)),
            "argument": refusal(checkpoint_every=1 - self.me),
            "rounds": refusal(experiment=experiment(self.mesh, num_rounds=1 - self.me)),
            "folder": refusal(name=None if self.me else "unsaved"),
            "there": refusal(name="there"),
            "sweep": message_of(
                fs.sweep, lambda lr: experiment(self.mesh, lr), {"lr": [0.1]}, [0], mesh=self.mesh
            ),
        }

    def told(self):
        """What fails in the second one alone: to encode, to compile, and a process that ends."""
        processes = processes_of(self.mesh)

        def leave():
            with processes.telling():
                if self.me:
                    sys.exit("enough")
            processes.gather(None)

        def compile_fails():
            compile_ = PreparedRun.compile

            def fail(run):
                compile_(run)  # in which all place its constants together
                raise MemoryError("no room for the program")

            with pytest.MonkeyPatch.context() as patch:
                if self.me:
                    patch.setattr(PreparedRun, "compile", fail)
                self.simulate()

        return {
            "encode": message_of(processes.gather, object() if self.me else 1),
            "compile": message_of(compile_fails),
            "leave": message_of(leave),
        }

    def windows(self):
        """Of a source, whose rows each process reads for itself."""
        return numbers(fs.simulate(on_source(self.mesh), 5, capacity=60))

    def fails(self):
        """A writer fails in the one that writes; what is done is saved, and all go on."""

        class Broken:
            def write(self, round, values):
                if round == 12:
                    raise OSError("no line for round 12")

            def close(self):
                pass

        try:
            self.simulate("fails", writers=[Broken()], checkpoint_every=5)
        except fs.InterruptedRun as error:
            message, done = str(error), int(error.partial.state.round)
        return {
            "message": message,
            "round": done,
            "numbers": numbers(self.simulate("fails", resume=True)),
        }

    def left_by_hand(self):
        """`on_progress`, which the writer calls, ends the run; what is done is saved, all go on."""
        algorithm = fs.fedsgd(loss_fn, optax.sgd(0.03))  # which compiles in a moment
        brief = experiment(self.mesh)._replace(algorithm=algorithm, evaluate=None)
        answers = {}
        for kind in (KeyboardInterrupt, SystemExit):

            def on_progress(progress, kind=kind):
                if progress.round >= 10:
                    raise kind("enough")

            name = f"left by {kind.__name__}"
            message = message_of(
                self.simulate,
                name,
                experiment=brief,
                on_progress=on_progress,
                checkpoint_every=5,
            )
            saved = [int(path.name) for path in (self.out / name / "checkpoints").iterdir()]
            answers[kind.__name__] = {"message": message, "saved": max(saved)}
        again = self.simulate("left by KeyboardInterrupt", experiment=brief, resume=True)
        answers["resumed"] = again.status
        return answers

    def unseen(self):
        """A checkpoint that the writer alone can read."""
        name = "unseen"
        self.simulate(name, experiment=experiment(self.mesh, num_rounds=3))
        out = self.out / (name if self.me == 0 else "elsewhere")
        return message_of(fs.simulate, experiment(self.mesh, num_rounds=3), 5, out=out, resume=True)


def start(out, jobs, count=2, devices=1):
    """What each of so many processes answers to the jobs: a list of dicts, by job.

    Raises:
      AssertionError: if one fails, with what it wrote; if they take too long.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out.mkdir(parents=True, exist_ok=True)
    logs = [out / f"log-{index}.txt" for index in range(count)]
    processes = []
    try:
        for index, log in enumerate(logs):
            words = [index, count, port, devices, out, ",".join(jobs)]
            command = [sys.executable, "-m", "tests.helpers.several", *map(str, words)]
            with log.open("wb") as file:
                processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
        for process, log in zip(processes, logs, strict=True):
            code = process.wait(timeout=SECONDS)
            assert code == 0, f"ended with {code}:\n{log.read_text()[-4000:]}"
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((out / f"answers-{index}.json").read_text()) for index in range(count)]


def main(index, count, port, devices, out, jobs):
    jax.config.update("jax_num_cpu_devices", int(devices))
    if int(count) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"localhost:{port}",
            int(count),
            int(index),
            initialization_timeout=SECONDS // 2,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    mesh = Mesh(jax.devices(), ("clients",))
    todo = Jobs(mesh, Path(out))
    answers = {job: getattr(todo, job)() for job in jobs.split(",")}
    (Path(out) / f"answers-{index}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
