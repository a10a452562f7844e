"""The manifest of a results folder: what run, or sweep, is in it; compared before a resume."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_sim.core.files import SaveError, make_file, replace_file, to_json
from fedjax_sim.results.folder import RUN, SWEEP, Kind, RunFolder

MORE_ROUNDS = (
    "more rounds are for a single run: a sweep's batch that is through keeps its tables, and no "
    "state to go on from"
)
# Facts that a resume may change, on the conditions that `Manifest._go_on_with_run` checks.
_MAY_CHANGE = ("num_rounds", "stop", "criterion")

# What each part of a program is called in an error that says that it differs.
_PARTS = {
    "sampler": "the sampler",
    "aggregation": "the aggregation rule",
    "algorithm": "the algorithm (its loss, optimizers, rates or another constant of it)",
    "evaluation": "what is evaluated (the measures or the test set)",
    "clock": "the clock",
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
        """The manifest of what is to run, with its facts as JSON reads them back."""
        return cls(kind, json.loads(to_json(facts)))

    @classmethod
    def read(cls, folder: RunFolder, kind: Kind) -> "Manifest | None":
        """The manifest in the folder; None if it has none."""
        path = folder.manifest(kind)
        return cls(kind, json.loads(path.read_text())) if path.exists() else None

    def write(self, folder: RunFolder) -> None:
        """Writes the manifest into the folder, whole or not at all.

        Raises:
          SaveError: if it cannot be written.
        """
        path = folder.manifest(self.kind)
        replace_file(path, lambda file: file.write(to_json(self.facts)))

    def join(self, folder: RunFolder) -> "Manifest":
        """The manifest that the folder has, to be compared; it is this one if it had none.

        Of several processes that join at the same time one writes, and the others read.

        Raises:
          ValueError: if the folder has parts without a manifest.
          SaveError: if it cannot be written.
        """
        path = folder.manifest(self.kind)
        if not path.exists():
            self._check_no_parts(folder)
            folder.path.mkdir(parents=True, exist_ok=True)
            if make_file(path, to_json(self.facts)):
                return self
        saved = self.read(folder, self.kind)
        if saved is None:
            raise SaveError(f"{path} is gone, which another process had written")
        return saved

    def open(
        self,
        folder: RunFolder,
        resume: bool,
        rounds_met: Callable[[], Sequence[int]] = list,
    ) -> None:
        """Checks that the folder can be used for what this manifest is of.

        An empty folder can, and gets this manifest. One with a manifest can be resumed if that
        is of the same run or sweep.

        Args:
          rounds_met: returns the rounds that are saved in the folder and meet the new stop
            criterion.

        Raises:
          ValueError: if the folder has a manifest and `resume` is False; if that manifest is of
            something else, or cannot be resumed; if checkpoints or tables are there without one.
          OSError: if the folder cannot be written.
        """
        name, out = self.kind.name, f"out {folder.path}"
        saved = self.read(folder, self.kind)
        if saved is None:
            self._check_no_parts(folder)
            folder.path.mkdir(parents=True, exist_ok=True)
            self.write(folder)
            return
        if not resume:
            article = "an" if name[0] in "aeiou" else "a"
            raise ValueError(
                f"{out} holds {article} {name} already; resume it, or name another folder"
            )
        if differs := self.differences(saved):
            raise ValueError(f"{out} holds another {name} and cannot be resumed: {differs}")
        if self.kind == RUN:
            self._go_on_with_run(saved, folder, rounds_met)
        elif any("program" not in group for group in saved.facts["groups"]):
            _warn_of_no_program(folder)

    def _check_no_parts(self, folder: RunFolder) -> None:
        """Refuses a folder with parts of which no manifest says what they are of.

        Raises:
          ValueError: if it has any.
        """
        # Another process may just have written the manifest, and then the first part.
        if folder.has_parts(self.kind) and not folder.manifest(self.kind).exists():
            raise ValueError(
                f"out {folder.path} holds {self.kind.parts} and no {self.kind.manifest} that says "
                "of what; name another folder, or remove them"
            )

    def differences(self, saved: "Manifest") -> str:
        """How the saved manifest differs from this one, in words; "" if a resume may go on."""
        if self.kind == SWEEP:
            return _another_sweep(saved.facts, self.facts)
        return another(saved.facts, self.facts)

    def check_rounds_done(self, folder: RunFolder, num_rounds: int, evaluate_every: int) -> None:
        """Checks that the saved run, which this manifest is of, may have `num_rounds` in all.

        Raises:
          ValueError: if more rounds are done already, or just as many and the last of them was
            not evaluated, as a last round is.
        """
        saved_rounds = self.facts.get("num_rounds")
        if saved_rounds in (None, num_rounds):
            return
        rounds_done = max(folder.numbers(RUN), default=0)
        if rounds_done > num_rounds:
            raise ValueError(
                f"num_rounds must be at least the {rounds_done} that are done in out "
                f"{folder.path}; got {num_rounds}"
            )
        if rounds_done == num_rounds < saved_rounds and num_rounds % evaluate_every:
            raise ValueError(
                f"num_rounds must be more than the {rounds_done} that are done in out "
                f"{folder.path}, the last of them without the evaluation that a last round has; "
                f"got {num_rounds}"
            )

    def _go_on_with_run(
        self, saved: "Manifest", folder: RunFolder, rounds_met: Callable[[], Sequence[int]]
    ) -> None:
        """Resumes a run, perhaps with another number of rounds or stop criterion.

        Raises:
          ValueError: if the rounds done do not allow that.
        """
        if "num_rounds" in self.facts:
            saved.check_rounds_done(folder, self.facts["num_rounds"], self.facts["evaluate_every"])
        if differs := self._met_before(saved, folder, rounds_met):
            raise ValueError(f"out {folder.path} cannot be resumed: {differs}")
        manifest = self
        if "program" in self.facts and saved.facts.get("program") is None:
            _warn_of_no_program(folder)
            # Nobody knows of which program the saved rounds are, so none is written down.
            manifest = Manifest(self.kind, self.facts | {"program": None})
        if any(saved.facts.get(name) != self.facts.get(name) for name in _MAY_CHANGE):
            manifest.write(folder)

    def _met_before(
        self, saved: "Manifest", folder: RunFolder, rounds_met: Callable[[], Sequence[int]]
    ) -> str:
        """Why a run cannot have another stop criterion than before, in words; "" if it can.

        It cannot if a round before the last one done meets the new criterion: the run would have
        ended there. A run that had no criterion may be given one: it ends now if a round met it.
        """
        saved_facts, facts = saved.facts, self.facts
        names = saved_facts.get("stop"), facts.get("stop")
        same_criterion = saved_facts.get("criterion", facts.get("criterion")) == facts.get(
            "criterion"
        )
        if None in names or (names[0] == names[1] and same_criterion):
            return ""
        rounds_done = max(folder.numbers(RUN), default=0)
        earlier = [round for round in rounds_met() if round < rounds_done]
        if not earlier:
            return ""
        return (
            f"{differences({'stop': names[0]}, {'stop': names[1]}) or 'stop differs'}, which round "
            f"{earlier[0]} of the {rounds_done} done had met"
        )


_PLACES = ("there", "here")


def differences(saved: Any, current: Any, name: str = "", places: tuple[str, str] = _PLACES) -> str:
    """What differs between two JSON values, in words; "" if nothing does.

    Args:
      places: where the two are from, in words.
    """
    if isinstance(saved, dict) and isinstance(current, dict):
        names = dict.fromkeys([*saved, *current])
        parts = [
            differences(saved.get(k), current.get(k), f"{name}.{k}" if name else k, places)
            for k in names
        ]
        return "; ".join(part for part in parts if part)
    if saved == current:
        return ""
    return f"{name} is {json.dumps(saved)} {places[0]} and {json.dumps(current)} {places[1]}"


def unlike(first: Facts, second: Facts, places: tuple[str, str]) -> str:
    """What differs in any way between the facts of two runs, in words; "" if nothing does.

    Args:
      places: where the two are from, in words.
    """
    plain = [{k: v for k, v in facts.items() if k != "program"} for facts in (first, second)]
    differs = differences(plain[0], plain[1], places=places)
    return differs or _program_differences(first["program"], second["program"], places)


def another(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """How a saved run, or a group of a sweep, differs from the one to run, in words; "" if equal.

    Whatever differs makes the traced program differ, too. That is said only if nothing else
    explains it.
    """
    programs = saved.get("program"), current.get("program")
    differs = differences(_fixed(saved), _fixed(current))
    if not differs and programs[0] is not None and programs[1] is not None:
        differs = _program_differences(programs[0], programs[1])
    rounds = saved.get("num_rounds"), current.get("num_rounds")
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


def _another_sweep(saved: Facts, current: Facts) -> str:
    facts = [{k: v for k, v in facts_of.items() if k != "groups"} for facts_of in (saved, current)]
    if differs := differences(facts[0], facts[1]):
        return differs
    for place, groups in enumerate(zip(saved["groups"], current["groups"], strict=True)):
        rounds = [group.get("num_rounds") for group in groups]
        if differs := another(*groups):
            several_groups = len(saved["groups"]) > 1
            return f"group {place + 1}: {differs}" if several_groups else differs
        if rounds[0] != rounds[1]:
            return f"num_rounds is {rounds[0]} there and {rounds[1]} here; {MORE_ROUNDS}"
    return ""


def _fixed(facts: Mapping[str, Any]) -> Facts:
    """The facts that must be equal for a resume."""
    fixed = {k: v for k, v in facts.items() if k not in (*_MAY_CHANGE, "program")}
    configuration = dict(fixed.get("configuration", {}))
    configured, rounds = configuration.get("rounds"), facts.get("num_rounds")
    # The command line's configuration says R again; of a baseline, the R of the whole baseline,
    # which its run may end before.
    if isinstance(configured, int) and isinstance(rounds, int) and configured >= rounds:
        del configuration["rounds"]
    return {**fixed, "configuration": configuration}


def _program_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], places: tuple[str, str] = _PLACES
) -> str:
    """What differs between two programs, by the names of parts where they have any."""
    parts = []
    for part in dict.fromkeys([*saved["parts"], *current["parts"]]):
        if saved["parts"].get(part) == current["parts"].get(part):
            continue
        names = [program["names"].get(part) for program in (saved, current)]
        if None not in names and names[0] != names[1]:
            parts.append(f"{part} is {names[0]} {places[0]} and {names[1]} {places[1]}")
        else:
            parts.append(f"{_PARTS.get(part, part)} differs")
    return f"the traced program differs: {', '.join(parts)}" if parts else ""


def _warn_of_no_program(folder: RunFolder) -> None:
    """Warns that the folder was saved by a version that did not compare programs yet."""
    warnings.warn(
        f"out {folder.path} was saved by a version that kept no checksum of the program; whether "
        "the rule, the sampler, the algorithm and its constants are the same could not be compared",
        stacklevel=4,
    )
