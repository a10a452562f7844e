"""What a setting wraps around its algorithm, from the inside out."""

from fedjax_sim.core.types import FederatedAlgorithm
from fedjax_sim.settings.asynchronous import asynchronous
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.transforms.compression import Codec, compressed
from fedjax_sim.transforms.compression.codec import no_memory


def wrapped(algorithm: FederatedAlgorithm, setting: ResolvedSetting) -> FederatedAlgorithm:
    """The algorithm under all that the setting's optional rooms make of it.

    Raises:
      ValueError: for an algorithm that one of them refuses.
    """
    return asynchronous(_private(algorithm, setting), setting)


def _private(algorithm: FederatedAlgorithm, setting: ResolvedSetting) -> FederatedAlgorithm:
    """What is sent, compressed and noised."""
    privacy = setting.choices.privacy
    if privacy is None:
        return _compressed(algorithm, setting)
    expected_cohort = setting.expected_cohort

    def private(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
        return privacy.call(setting.options, algorithm=algorithm, expected_cohort=expected_cohort)

    # A server clips what it has decoded; a client's own noise is there before it encodes.
    if privacy.takes("expected_cohort"):
        return private(_compressed(algorithm, setting))
    return _compressed(private(algorithm), setting)


def _compressed(algorithm: FederatedAlgorithm, setting: ResolvedSetting) -> FederatedAlgorithm:
    """In two calls, since each direction says by itself whether errors are fed back."""
    uplink, downlink = setting.choices.compress, setting.choices.downlink
    if uplink is not None:
        codec = uplink.call(setting.options)
        feeds_back = setting.extras["error_feedback"]
        _check_has_memory(codec, feeds_back, f"compress {uplink.name}")
        algorithm = compressed(algorithm, codec, error_feedback=feeds_back)
    if downlink is not None:
        codec = downlink.call(setting.options)
        feeds_back = setting.extras["downlink_error_feedback"]
        _check_has_memory(codec, feeds_back, f"downlink {downlink.name}", "downlink_")
        algorithm = compressed(algorithm, downlink=codec, error_feedback=feeds_back)
    return algorithm


def _check_has_memory(codec: Codec, feeds_back: bool, name: str, prefix: str = "") -> None:
    """Refuses error feedback of a codec that has no memory, by the names of a setting.

    Raises:
      ValueError: saying which option to change.
    """
    if feeds_back and codec.init is no_memory:
        raise ValueError(
            f"{prefix}error_feedback needs {prefix}unbiased to be false for {name}, since what is "
            "held back would grow each time that it is sent"
        )
