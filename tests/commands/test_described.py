import subprocess
import sys
from dataclasses import fields
from inspect import signature

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._util import import_object

from dropkey_cli.commands.defaults import DEFAULT_DATA, DEFAULT_TASK, MULTI_LABEL_TASK, NAMED_DATA, TABLE_DATA
from dropkey_cli.commands.described import Parameter, described_parameters
from dropkey_cli.method.settings import DropKeySettings


def test_described_parameters_are_those_of_the_source_with_fields_of_dataclasses() -> None:
    found = {parameter.name: parameter for parameter in described_parameters(DEFAULT_TASK)}
    assert [name for name in found if "." not in name] == list(signature(import_object(DEFAULT_TASK)).parameters)
    assert {name.removeprefix("dropkey.") for name in found if "." in name} == {field.name for field in fields(DropKeySettings)}
    assert found["lr"] == Parameter(
        "lr",
        "float | None",
        "None",
        "Learning rate after warm-up; by default 5e-4 (right for AdamW) times the images per optimizer step over 256.",
    )
    assert found["dropkey.schedule"].type == "Literal['decreasing', 'constant', 'increasing'] | list[float]"
    assert found["dropkey.include"].default == "[]"


def test_describing_imports_neither_the_class_nor_torch() -> None:
    program = """
import sys
from dropkey_cli.commands.described import described_parameters
described_parameters('lightning.pytorch.trainer.trainer.Trainer')
sys.exit('lightning' in sys.modules or 'torch' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("class_path", [DEFAULT_DATA, TABLE_DATA, NAMED_DATA, MULTI_LABEL_TASK])
def test_options_that_are_handed_on_are_described_where_they_are_taken(class_path: str) -> None:
    found = [parameter for parameter in described_parameters(class_path) if "." not in parameter.name]
    expected = get_signature_parameters(import_object(class_path), None)
    assert {parameter.name for parameter in found} == {parameter.name for parameter in expected}
    assert len(found) == len(expected)
    assert [parameter.name for parameter in found if not parameter.help] == []
