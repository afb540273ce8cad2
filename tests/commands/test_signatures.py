import subprocess
import sys
from inspect import cleandoc, signature
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import ArgumentParser
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._util import import_object
from jsonargparse.typing import PositiveInt
from lightning import Trainer

from dropkey_cli.commands.defaults import DEFAULT_DATA, DEFAULT_TASK
from dropkey_cli.commands.signatures import (
    constructor_options,
    outline,
    parameter_names,
    wrong_values,
)
from dropkey_cli.method.settings import DropKeySettings


@pytest.mark.parametrize("class_path", [DEFAULT_TASK, DEFAULT_DATA, "dropkey_cli.data.digits.Digits"])
def test_outline_has_the_signature_and_docstring_of_the_class(class_path: str) -> None:
    original = import_object(class_path)
    outlined = outline(class_path)
    ours, theirs = (
        [(one.name, one.annotation, one.default, one.kind, one.doc) for one in get_signature_parameters(each, None)]
        for each in (outlined, original)
    )
    assert ours == theirs
    assert all(doc for *_, doc in ours)
    assert outlined.__name__ == original.__name__
    assert cleandoc(outlined.__doc__ or "").partition("Args:")[0] == cleandoc(original.__doc__ or "").partition("Args:")[0]
    assert constructor_options(outlined) == constructor_options(original)


@pytest.mark.parametrize("method", ["__init__", "fit", "validate", "test", "predict"])
def test_parameter_names_are_those_of_the_method(method: str) -> None:
    names = parameter_names("lightning.pytorch.trainer.trainer.Trainer", method)
    assert names == list(signature(getattr(Trainer, method)).parameters)[1:]


def test_constructor_options_name_the_fields_of_a_nested_dataclass() -> None:
    options = constructor_options(outline(DEFAULT_TASK))
    assert {"lr", "dropkey", "dropkey.ratio", "dropkey.schedule"} <= options
    assert "self" not in options


def test_nothing_is_imported_that_the_signature_does_not_name() -> None:
    program = f"""
import sys
from dropkey_cli.commands.signatures import outline
outline({DEFAULT_TASK!r}), outline({DEFAULT_DATA!r})
assert "dropkey_cli.method.settings" in sys.modules
sys.exit(bool({{"torch", "lightning", "timm", "PIL", {DEFAULT_TASK.rpartition(".")[0]!r}}} & sys.modules.keys()))
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


class Options:
    def __init__(
        self,
        whole: int,
        number: float | None,
        word: Literal["a", "b"],
        flag: bool,
        pair: tuple[float, float],
        many: tuple[int, ...],
        names: list[str] | None,
        free: Any,  # noqa: ANN401
        folder: Path,
        size: PositiveInt,
        settings: DropKeySettings | None,
        schedule: Literal["x"] | list[float],
    ) -> None: ...


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("whole", [1, -1], [1.5, True, None, "1", [1]]),
        ("number", [1, 1.5, None], [True, "1", [1.5], {}]),
        ("word", ["a", "b"], ["c", None, 1]),
        ("flag", [True, False], [1, 0, None, "true"]),
        ("pair", [[1.0, 2]], [[1.0], [1, 2, 3], 1, None, "ab", ["a", "b"]]),
        ("many", [[], [1], [1, 2, 3]], [1, ["a"], None]),
        ("names", [[], ["a"], None], ["a", [1], {"a": 1}]),
        ("free", [1, "a", None, {"b": [1]}], []),
        ("folder", ["a"], [1, None, {}]),
        ("size", [1], ["1", 1.5, None]),
        (
            "settings",
            [None, {}, {"ratio": 0.5, "schedule": [0.1, 0]}],
            ["a.B", {"ratio": "x"}, {"x": 1}, {"class_path": "a.B"}, []],
        ),
        ("schedule", ["x", [1, 0.5]], ["y", ["x"], None]),
    ],
)
def test_wrong_values_are_those_that_do_not_fit_the_annotation(name: str, good: list[object], bad: list[object]) -> None:
    assert [value for value in good if wrong_values(Options, {name: value})] == []
    assert [value for value in bad if not wrong_values(Options, {name: value})] == []
    assert wrong_values(Options, {"unknown": 3}) == []


@pytest.mark.parametrize("class_path", [DEFAULT_TASK, DEFAULT_DATA, "dropkey_cli.data.digits.Digits"])
def test_the_defaults_of_our_classes_are_no_wrong_values(class_path: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(import_object(class_path), "a")
    defaults = yaml.safe_load(parser.dump(parser.get_defaults(), skip_unset=False))["a"]
    assert defaults.keys() == {parameter.name for parameter in get_signature_parameters(import_object(class_path), None)}
    assert wrong_values(outline(class_path), defaults) == []
