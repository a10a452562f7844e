"""What identifies what is in a results folder: read, written, compared, refused."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_sim.core.files import replace_file, to_json
from fedjax_sim.results.folder import RUN, SWEEP, Kind, RunFolder

MORE_ROUNDS = (
    "more rounds are for a single run: a sweep's batch that is through keeps its tables, and no "
    "state to go on from"
)
# What a run may be given another of while it goes on, on conditions.
_MAY_CHANGE = ("num_rounds", "stop", "criterion")

# What each part of a program is called where another was run before.
_PARTS = {
    "sampler": "the sampler",
    "aggregation": "the aggregation rule",
    "algorithm": "the algorithm (its loss, optimizers, rates or another constant of it)",
    "evaluation": "what is evaluated (the measures or the test set)",
    "params": "how the first model is made",
    "function": "what the function computes",
}

Facts = dict[str, Any]  # values of JSON


class Manifest(NamedTuple):
    """What identifies a run, or a sweep, so that a resume does not take another for it.

    Attributes:
      kind: `folder.RUN` or `folder.SWEEP`.
      facts: name -> a value of JSON.
    """

    kind: Kind
    facts: Facts

    @classmethod
    def of(cls, kind: Kind, facts: Mapping[str, Any]) -> "Manifest":
        """That of what is to run, its facts as they are when they are read back."""
        return cls(kind, json.loads(to_json(facts)))

    @classmethod
    def read(cls, folder: RunFolder, kind: Kind) -> "Manifest | None":
        """That of what is there; None if nothing is."""
        path = folder.manifest(kind)
        return cls(kind, json.loads(path.read_text())) if path.exists() else None

    def write(self, folder: RunFolder) -> None:
        """Writes it, whole or not at all.

        Raises:
          SaveError: if it cannot be written.
        """
        path = folder.manifest(self.kind)
        replace_file(path, lambda file: file.write(to_json(self.facts)))

    def open(
        self,
        folder: RunFolder,
        resume: bool,
        rounds_met: Callable[[], Sequence[int]] = list,
    ) -> None:
        """Compares what is there with this, which is to run; written where nothing is there.

        Args:
          rounds_met: those of a run's rounds done that meet the stop criterion of what is to run.

        Raises:
          ValueError: if something is there and `resume` is False, or it is of something else, or
            cannot be gone on with; if there are parts of nobody knows what.
          OSError: if the folder cannot be written.
        """
        name, out = self.kind.name, f"out {folder.path}"
        there = self.read(folder, self.kind)
        if there is None:
            if folder.has_parts(self.kind):
                raise ValueError(
                    f"{out} holds {self.kind.parts} and no {self.kind.manifest} that says of what; "
                    "name another folder, or remove them"
                )
            folder.path.mkdir(parents=True, exist_ok=True)
            self.write(folder)
            return
        if not resume:
            article = "an" if name[0] in "aeiou" else "a"
            raise ValueError(
                f"{out} holds {article} {name} already; resume it, or name another folder"
            )
        if differs := self.differences(there):
            raise ValueError(f"{out} holds another {name} and cannot be resumed: {differs}")
        if self.kind == RUN:
            self._go_on_with_run(there, folder, rounds_met)
        elif any("program" not in group for group in there.facts["groups"]):
            _warn_of_no_program(folder)

    def differences(self, there: "Manifest") -> str:
        """What makes what is there another than this, in words; "" if nothing does."""
        if self.kind == SWEEP:
            return _another_sweep(there.facts, self.facts)
        return another(there.facts, self.facts)

    def check_rounds_done(self, folder: RunFolder, num_rounds: int, evaluate_every: int) -> None:
        """Refuses to end a run that is there before the rounds that are done.

        Nor may it end in the middle of what is evaluated.

        Raises:
          ValueError: saying how many are done.
        """
        before = self.facts.get("num_rounds")
        if before in (None, num_rounds):
            return
        done = max(folder.numbers(RUN), default=0)
        if done > num_rounds:
            raise ValueError(
                f"num_rounds must be at least the {done} that are done in out {folder.path}; got "
                f"{num_rounds}"
            )
        if done == num_rounds < before and num_rounds % evaluate_every:
            raise ValueError(
                f"num_rounds must be more than the {done} that are done in out {folder.path}, the "
                f"last of them without the evaluation that a last round has; got {num_rounds}"
            )

    def _go_on_with_run(
        self, there: "Manifest", folder: RunFolder, rounds_met: Callable[[], Sequence[int]]
    ) -> None:
        """The conditions on which a run may have other rounds and another criterion."""
        if "num_rounds" in self.facts:
            there.check_rounds_done(folder, self.facts["num_rounds"], self.facts["evaluate_every"])
        if differs := self._met_before(there, folder, rounds_met):
            raise ValueError(f"out {folder.path} cannot be resumed: {differs}")
        here = self
        if "program" in self.facts and there.facts.get("program") is None:
            _warn_of_no_program(folder)
            # What is there may be of another program than the one at hand.
            here = Manifest(self.kind, self.facts | {"program": None})
        if any(there.facts.get(name) != self.facts.get(name) for name in _MAY_CHANGE):
            here.write(folder)

    def _met_before(
        self, there: "Manifest", folder: RunFolder, rounds_met: Callable[[], Sequence[int]]
    ) -> str:
        """Why a run cannot end by another criterion than before, in words.

        One that had none may be given one: no round is taken back.
        """
        before, now = there.facts, self.facts
        names = before.get("stop"), now.get("stop")
        same = before.get("criterion", now.get("criterion")) == now.get("criterion")
        if None in names or (names[0] == names[1] and same):
            return ""
        done = max(folder.numbers(RUN), default=0)
        earlier = [round for round in rounds_met() if round < done]
        if not earlier:
            return ""
        return (
            f"{differences({'stop': names[0]}, {'stop': names[1]}) or 'stop differs'}, which round "
            f"{earlier[0]} of the {done} done had met"
        )


_PLACES = ("there", "here")


def differences(there: Any, here: Any, name: str = "", places: tuple[str, str] = _PLACES) -> str:
    """What differs between two JSON values, in words; "" if nothing does.

    Args:
      places: where the two are from, in words.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        names = dict.fromkeys([*there, *here])
        parts = [
            differences(there.get(k), here.get(k), f"{name}.{k}" if name else k, places)
            for k in names
        ]
        return "; ".join(part for part in parts if part)
    if there == here:
        return ""
    return f"{name} is {json.dumps(there)} {places[0]} and {json.dumps(here)} {places[1]}"


def unlike(one: Facts, other: Facts, places: tuple[str, str]) -> str:
    """What differs in any way between the facts of two runs, in words; "" if nothing does.

    Args:
      places: where the two are from, in words.
    """
    plain = [{k: v for k, v in facts.items() if k != "program"} for facts in (one, other)]
    differs = differences(plain[0], plain[1], places=places)
    return differs or _program_differences(one["program"], other["program"], places)


def another(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What makes what is there another run, or group of a sweep, in words; "" if nothing does.

    What is known to differ makes another program, too, which is told only where nothing else is.
    """
    programs = there.get("program"), here.get("program")
    differs = differences(_fixed(there), _fixed(here))
    if not differs and programs[0] is not None and programs[1] is not None:
        differs = _program_differences(programs[0], programs[1])
    rounds = there.get("num_rounds"), here.get("num_rounds")
    if rounds[0] == rounds[1]:
        return differs
    of_rounds = differences({"num_rounds": rounds[0]}, {"num_rounds": rounds[1]})
    if differs:
        return (
            f"{of_rounds}; {differs}. More rounds need all else to be as it was: what depends on "
            "the number of rounds, as a schedule may, must be given the earlier one"
        )
    if None in programs:
        return (
            f"{of_rounds}; it was saved by a version that kept no checksum of the program, so it "
            "is not known whether anything in it depends on the number of rounds"
        )
    return ""


def _another_sweep(there: Facts, here: Facts) -> str:
    facts = [{k: v for k, v in one.items() if k != "groups"} for one in (there, here)]
    if differs := differences(facts[0], facts[1]):
        return differs
    for place, groups in enumerate(zip(there["groups"], here["groups"], strict=True)):
        rounds = [group.get("num_rounds") for group in groups]
        if differs := another(*groups):
            many = len(there["groups"]) > 1
            return f"group {place + 1}: {differs}" if many else differs
        if rounds[0] != rounds[1]:
            return f"num_rounds is {rounds[0]} there and {rounds[1]} here; {MORE_ROUNDS}"
    return ""


def _fixed(facts: Mapping[str, Any]) -> Facts:
    """What must be the same to the letter."""
    fixed = {k: v for k, v in facts.items() if k not in (*_MAY_CHANGE, "program")}
    configuration = dict(fixed.get("configuration", {}))
    asked, rounds = configuration.get("rounds"), facts.get("num_rounds")
    # The command line's label says R again; of a baseline, those that its run was to have.
    if isinstance(asked, int) and isinstance(rounds, int) and asked >= rounds:
        del configuration["rounds"]
    return {**fixed, "configuration": configuration}


def _program_differences(
    there: Mapping[str, Any], here: Mapping[str, Any], places: tuple[str, str] = _PLACES
) -> str:
    """What differs between two programs, by the names of parts where they have any."""
    parts = []
    for part in dict.fromkeys([*there["parts"], *here["parts"]]):
        if there["parts"].get(part) == here["parts"].get(part):
            continue
        names = [program["names"].get(part) for program in (there, here)]
        if None not in names and names[0] != names[1]:
            parts.append(f"{part} is {names[0]} {places[0]} and {names[1]} {places[1]}")
        else:
            parts.append(f"{_PARTS.get(part, part)} differs")
    return f"the traced program differs: {', '.join(parts)}" if parts else ""


def _warn_of_no_program(folder: RunFolder) -> None:
    """Of what was saved before programs were compared."""
    warnings.warn(
        f"out {folder.path} was saved by a version that kept no checksum of the program; whether "
        "the rule, the sampler, the algorithm and its constants are the same could not be compared",
        stacklevel=4,
    )
