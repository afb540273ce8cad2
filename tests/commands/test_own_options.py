from dropkey_cli.callbacks.named_loggers import _STARTS
from dropkey_cli.commands.own_options import LOGGERS, OWN_OPTIONS, flags_spelled_out, own_options


def test_names_are_unique_and_options_of_fit_are_taken_everywhere() -> None:
    names = [option.name for option in OWN_OPTIONS]
    assert len(set(names)) == len(names)
    of_fit = {option.name for option in OWN_OPTIONS if "fit" in option.commands}
    for command in ("fit", "validate", "test", "predict"):
        assert of_fit <= {option.name for option in own_options(command)}
    assert "output" not in {option.name for option in own_options("test")}


def test_flags_need_no_value() -> None:
    words = ["--features", "--output", "a.csv", "--all_probabilities=false", "--features", "false", "--all_probabilities"]
    spelled = [
        "--features=true",
        "--output",
        "a.csv",
        "--all_probabilities=false",
        "--features",
        "false",
        "--all_probabilities=true",
    ]
    assert flags_spelled_out("predict", words) == spelled
    assert flags_spelled_out("test", ["--features"]) == ["--features"]  # unknown there, and refused as such


def test_loggers_are_those_that_can_be_started_and_csv() -> None:
    assert set(LOGGERS) == {*_STARTS, "csv"}
