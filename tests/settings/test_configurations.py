"""Options of a grid: each is of the configurations that take it, and of one at least."""

import textwrap

import pytest

from fedjax_sim.settings.configurations import in_common, resolved_each, resolved_one
from fedjax_sim.settings.options import vocabulary_of
from fedjax_sim.settings.setting import Setting

SHARED = {"clients": 10, "rounds": 3}


@pytest.mark.parametrize(
    ("options", "axis", "takers"),
    [
        ({"malicious": 0.2}, ("attack", ["none", "ipm", "alie"]), ["ipm", "alie"]),
        ({"malicious": 0.2, "flip_scale": 2.0}, ("attack", ["none", "sign_flip"]), ["sign_flip"]),
        ({"f": 1}, ("mode", ["selected", "krum", "median"]), ["krum"]),
        ({"share": 0.1}, ("compress", ["none", "top_k"]), ["top_k"]),
        ({"error_feedback": True, "share": 0.1}, ("compress", ["none", "top_k"]), ["top_k"]),
        ({"mu": 0.1}, ("algorithm", ["fedavg", "fedprox"]), ["fedprox"]),
        ({"epochs": 2}, ("algorithm", ["fedavg", "fedsgd"]), ["fedavg"]),
        ({"fraction": 0.5}, ("sampler", ["uniform", "everyone"]), ["uniform"]),
        ({"alpha": 0.1}, ("partition", ["iid", "dirichlet"]), ["dirichlet"]),
        ({"decay_end": 0.1}, ("schedule", ["constant", "cosine"]), ["cosine"]),
        ({"deadline": 2.0}, ("clock", ["none", "lognormal"]), ["lognormal"]),
    ],
)
def test_an_option_is_of_those_that_take_it(options, axis, takers):
    name, choices = axis
    settings = resolved_each(SHARED | options, [{name: choice} for choice in choices])
    for choice, setting in zip(choices, settings, strict=True):
        own = options if choice in takers else {}
        assert setting.values() == Setting.of(SHARED | own | {name: choice}).resolved().values()
        assert setting == resolved_one(SHARED | options, {name: choice})


def test_a_schedule_goes_with_its_options():
    """An algorithm without a rate has neither the schedule nor the end of it."""
    shared = SHARED | {"schedule": "cosine", "decay_end": 0.1}
    averaged, pooled = resolved_each(shared, [{"algorithm": "fedavg"}, {"algorithm": "fedsgd"}])
    assert averaged.values()["decay_end"] == 0.1
    assert not {"schedule", "decay_end"} & {*pooled.values()}


def test_privacy_beside_none():
    """With it come its own rule and its own sampler, where nothing else asks for others."""
    pytest.importorskip("dp_accounting")
    options = {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-4}
    plain, private = resolved_each(SHARED | options, [{"privacy": "none"}, {"privacy": "central"}])
    assert not {"privacy", *options} & {*plain.values()}
    assert options.items() <= private.values().items()
    assert (plain.sampler, private.sampler) == ("uniform", "bernoulli")
    assert "sampler" not in in_common([plain, private], without=())
    assert in_common([plain, private], without=("rounds",))["clients"] == 10


@pytest.mark.parametrize(
    ("options", "axis", "message"),
    [
        (
            {"malicious": 0.2},
            ("compress", ["none", "sign"]),
            "malicious belongs to attack .*; there is no attack$",
        ),
        ({"f": 1}, ("mode", ["median"]), "f belongs to mode .*; the mode is median$"),
        (
            {"f": 1},
            ("mode", ["median", "selected"]),
            "f belongs to mode krum and multi_krum; the mode is median and selected$",
        ),
        (
            {"decay_end": 0.1},
            ("schedule", ["constant", "step"]),
            "decay_end belongs to schedule cosine and linear; the schedule is constant and step$",
        ),
        ({"epochs": 2}, ("algorithm", ["fedsgd"]), "epochs .*algorithm fedsgd.*but of"),
        ({"f": 9, "g": 1}, ("mode", ["krum", "median"]), "unknown name 'g'"),
        ({}, ("f", [1, 2]), "f belongs to mode"),
        ({"malicious": 1.5}, ("attack", ["none", "ipm"]), r"malicious must be finite and in \(0"),
    ],
)
def test_an_option_that_nobody_takes_is_refused(options, axis, message):
    name, values = axis
    with pytest.raises(ValueError, match=message):
        resolved_each(SHARED | options, [{name: value} for value in values])


def test_the_options_of_a_file(tmp_path):
    """A user's own algorithm beside one of the package, which does not know its option."""
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""
        import fedjax_sim as fs

        def decayed(loss_fn, client_optimizer, local, strength=0.1):
            return fs.fedavg(loss_fn, client_optimizer, local)
        """)
    )
    own = f"{path}:decayed"
    several = [{"algorithm": "fedavg"}, {"algorithm": own}]
    vocabulary = vocabulary_of({}, ("algorithm", own))
    plain, mine = resolved_each(SHARED | {"strength": 0.5}, several, vocabulary)
    assert mine.options["strength"] == 0.5
    assert "strength" not in plain.options
