import inspect
import subprocess
import sys

import pytest
from jsonargparse._util import import_object
from lightning import Trainer

from dropkey_cli.commands.defaults import DEFAULT_DATA, DEFAULT_TASK
from dropkey_cli.commands.signatures import constructor_options, outline, parameter_names


@pytest.mark.parametrize("class_path", [DEFAULT_TASK, DEFAULT_DATA, "dropkey_cli.data.digits.Digits"])
def test_outline_has_the_signature_and_docstring_of_the_class(class_path: str) -> None:
    original = import_object(class_path)
    outlined = outline(class_path)
    assert inspect.signature(outlined) == inspect.signature(original)
    assert (outlined.__name__, outlined.__doc__) == (original.__name__, original.__doc__)
    assert constructor_options(outlined) == constructor_options(original)


@pytest.mark.parametrize("method", ["__init__", "fit", "validate", "test", "predict"])
def test_parameter_names_are_those_of_the_method(method: str) -> None:
    names = parameter_names("lightning.pytorch.trainer.trainer.Trainer", method)
    assert names == list(inspect.signature(getattr(Trainer, method)).parameters)[1:]


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
