from typing import Any

import pytest

from dropkey_cli.commands.defaults import checkpoint_defaults
from dropkey_cli.errors import InputError

DESCRIPTION: dict[str, Any] = {
    "config": {
        "model": {"class_path": "dropkey_cli.tasks.classification.Classification", "init_args": {"lr": 1.0}},
        "data": {"class_path": "dropkey_cli.data.digits.Digits", "init_args": {"degrees": 3.0}},
    }
}


def test_a_checkpoint_gives_model_and_data_and_to_predict_the_model() -> None:
    assert checkpoint_defaults(DESCRIPTION, "test", []) == DESCRIPTION["config"]
    assert checkpoint_defaults(DESCRIPTION, "predict", []) == {"model": DESCRIPTION["config"]["model"]}


@pytest.mark.parametrize("part", ["model", "data"])
def test_a_checkpoint_imports_only_our_classes_unasked(part: str) -> None:
    config = {**DESCRIPTION["config"], part: {"class_path": "evil.Module"}}
    with pytest.raises(InputError, match=rf"^the checkpoint wants the class 'evil.Module', .* add --{part} evil.Module$"):
        checkpoint_defaults({"config": config}, "test", ["--ckpt_path=x"])
    assert checkpoint_defaults({"config": config}, "test", [f"--{part}", "evil.Module"]) == config
