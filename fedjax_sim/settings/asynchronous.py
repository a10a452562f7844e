"""A setting's asynchronous rounds: what they need, and what they cannot have beside them."""

from fedjax_sim.core.types import FederatedAlgorithm
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.settings.rooms import declarations
from fedjax_sim.settings.timing import clock
from fedjax_sim.transforms.asynchronous.refusals import check_buffer


def asynchronous(algorithm: FederatedAlgorithm, setting: ResolvedSetting) -> FederatedAlgorithm:
    """The algorithm in the asynchronous rounds of a setting, by its clock; or as it is.

    Raises:
      ValueError: for an algorithm that cannot be asynchronous.
    """
    chosen = setting.choices.asynchronous
    if chosen is None:
        return algorithm
    wrapped: FederatedAlgorithm = chosen.call(
        setting.options, algorithm=algorithm, clock=clock(setting)
    )
    return wrapped


def check_asynchronous(setting: ResolvedSetting) -> None:
    """Refuses asynchronous rounds without a clock, with a deadline, or of too few clients.

    Raises:
      ValueError: naming the value, what was given and what is allowed.
    """
    chosen = setting.choices.asynchronous
    if chosen is None:
        return
    if setting.choices.clock is None:
        raise ValueError(
            f"clock must be given to asynchronous {chosen.name}, because who arrives first is "
            f"decided by how fast clients are: one of {', '.join(declarations('clock'))}"
        )
    if "deadline" in setting.extras:
        raise ValueError(
            f"deadline must not be given to asynchronous {chosen.name}, in whose rounds nobody is "
            f"late; got {setting.extras['deadline']:g}"
        )
    if setting.choices.attack is not None and not setting.choices.attack.takes("data"):
        raise ValueError(
            f"attack must not be given to asynchronous {chosen.name}, because attackers who know "
            "each other's updates are of one cohort, and these come at different times; got "
            f"{setting.choices.attack.name}"
        )
    privacy = setting.choices.privacy
    if privacy is not None and privacy.takes("expected_cohort"):
        raise ValueError(
            f"privacy must not be {privacy.name} in asynchronous rounds: its budget is of cohorts "
            "drawn at random, and who arrives first is decided by who is fast; local needs no "
            "cohort"
        )
    concurrency = setting.options["concurrency"]
    if concurrency > setting.slots:
        raise ValueError(
            f"concurrency must be at most the {setting.slots} clients that --sampler "
            f"{setting.sampler} draws, of whom those who are free are sent the model; got "
            f"{concurrency}"
        )
    check_buffer(setting.options.get("buffer", 1), concurrency)
