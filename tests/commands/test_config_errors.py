import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropkey_cli.cli import main

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nmae", "x"], r"^unknown option --nmae; did you mean '--name'"),
        (["--trainr.max_epochs", "3"], r"^unknown option --trainr.max_epochs; did you mean '--trainer.max_epochs'"),
        (["--trainer.max_epoch", "3"], r"^unknown option --trainer.max_epoch; did you mean '--trainer.max_epochs'"),
        (["--modle.lr", "1"], r"^unknown option --modle.lr; did you mean '--model.lr'"),
        (["--model.lrr", "1"], r"^unknown option --model.lrr; did you mean '--model.lr'"),
        (["--model.layer_dekay", "1"], r"^unknown option --model.layer_dekay; did you mean '--model.layer_decay'"),
        (["--model.dropkey.ratoi", "0.2"], r"^unknown option --model.dropkey.ratoi; did you mean '--model.dropkey.ratio'"),
        (["--data.batchsize", "3"], r"^unknown option --data.batchsize; did you mean '--data.batch_size'"),
        (["--lr", "1"], r"^unknown option --lr; did you mean '--model.lr'\?$"),
        (["extra"], r"^unexpected 'extra': options are written --name value"),
        (["-x"], r"^unexpected '-x'"),
        (["--model.lr", "abc"], r"^model.lr 'abc' is not valid: expected a number or null$"),
        (["--model.dropkey.ratio", "x"], r"^model.dropkey.ratio 'x' is not valid: expected a number$"),
        (["--model.dropkey.schedule", "decresing"], r"^model.dropkey.schedule 'decresing' .*expected decreasing, constant"),
        (["--model.dropkey.structure", "elment"], r"^model.dropkey.structure 'elment' .*: expected .*mean 'element'\?$"),
        (["--model.pretrained", "ture"], r"^model.pretrained 'ture' .*: expected true or false; did you mean 'true'\?$"),
        (["--on_nonfinite_loss", "skp"], r"^on_nonfinite_loss 'skp' .*: expected stop, skip; did you mean 'skip'\?$"),
        (["--trainer.precision", "bf16-mixd"], r"^trainer.precision 'bf16-mixd' is not valid: .*; did you mean 'bf16-mixed'"),
        (["--trainer.callbacks", "EarlyStoping"], r"^trainer.callbacks 'EarlyStoping' .*; did you mean 'EarlyStopping'\?$"),
        (["--trainer.logger", "tensorbord"], r"^trainer.logger 'tensorbord' .*; a logger is .* --logger tensorboard$"),
        (["--model.lr", "1e400"], r"^model.lr is inf; expected a finite number; give --model.lr$"),
        (
            ["--model.dropkey.window_size", "9" * 30],
            r"^model.dropkey.window_size is 9+; expected a number of at most 18 digits",
        ),
        (["--data.batch_size", "null"], r"^data.batch_size is null; expected a whole number; give --data.batch_size"),
        (["--data.mean", "x"], r"^unknown option --data.mean; did you mean '--data'"),  # an option of image folders only
        (["--model.model_args", "x"], r"^model.model_args 'x' is not valid: expected a mapping such as {depth: 6} or null$"),
        (["--trainer.callbacks", ".nan"], r"^trainer.callbacks 'nan' is not valid: expected a list"),
        (["--data.batch_size", "1.5"], r"^data.batch_size '1.5' is not valid: expected a whole number$"),
        (["--trainer.max_epochs", "two"], r"^trainer.max_epochs 'two' is not valid: expected a whole number or null$"),
        (["--seed_everything", "abc"], r"^seed_everything 'abc' is not valid: expected true or false or a whole number"),
        (["--trainer.max_epochs"], r"^--trainer.max_epochs: expected one argument; write it as --option value$"),
        (["--model", "Foo"], r"^model 'Foo' is not valid: expected a class path such as dropkey_cli.tasks"),
        (["--data", "dropkey_cli.data.digits.Digitss"], r"^data 'dropkey_cli.data.digits.Digitss' cannot .*mean 'Digits'\?$"),
    ],
)
def test_a_wrong_word_is_named_with_the_right_one(words: list[str], message: str, refused: Refused) -> None:
    assert re.search(message, refused("fit", "--config", QUICKSTART, *words))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [1, 2\ntrainer: x", r"^--config 'c.yaml' is not valid YAML: .*expected ',' or '\]'"),
        ("", r"^--config 'c.yaml' holds no options"),
        ("- 1\n", r"^--config 'c.yaml' holds no options"),
        ("trainr: {max_epochs: 3}", r"^unknown option --trainr.max_epochs; did you mean '--trainer.max_epochs'"),
        ("trainer: {max_epoch: 3}", r"^unknown option --trainer.max_epoch; did you mean '--trainer.max_epochs'"),
        ("trainer: {max_epochs: two}", r"^trainer.max_epochs 'two' is not valid: expected a whole number or null$"),
        ("trainer: null", r"^trainer is None: give its options"),
        ("trainer: false", r"^trainer is False: give its options"),
        ("model: {dropkey: {raito: 0.2}}", r"^unknown option --model.dropkey.raito; did you mean '--model.dropkey.ratio'"),
        (
            "model: {init_args: {dropkey: {raito: 0.2}}}",
            r"^unknown option --model.dropkey.raito; did you mean '--model.dropkey.r",
        ),
        ("model: 3", r"^model is 3: give its options, or leave it out for the defaults$"),
        ("data: {init_args: {batchsize: 2}}", r"^unknown option --data.batchsize; did you mean '--data.batch_size'"),
        ("data: {class_path: dropkey_cli.data.digits.Digits, init_args: {degree: 2}}", r"--data.degree; .*'--data.degrees'"),
        ("data: {class_path: dropkey_cli.data.digits.Digitss}", r"^data 'dropkey_cli.data.digits.Digitss' .*mean 'Digits'\?$"),
        ("data: {class_path: nowhere.Digits}", r"^data 'nowhere.Digits' cannot be imported \(No module named 'nowhere'\)"),
        ("model: null", r"^model is None: give its options"),
        ("trainer: 3", r"^trainer is 3: give its options"),
        ("3: 4", r"^--config 'c.yaml' is not valid YAML: line 1: the key '3' is no option's name; expected text"),
        ("ckpt_path: 3", r"^ckpt_path 3 is not valid"),
        ("model: !!python/object/apply:os.system ['touch ran']", r"^--config 'c.yaml' is not valid YAML: could not determine"),
    ],
)
def test_a_wrong_config_is_explained(content: str, message: str, refused: Refused) -> None:
    Path("c.yaml").write_text(content)
    assert re.search(message, refused("fit", "--config", "c.yaml"))
    assert not Path("ran").exists()


def test_a_config_that_is_no_file_is_named(refused: Refused) -> None:
    assert "nowhere.yaml' does not exist: check the path" in refused("fit", "--config", "nowhere.yaml")
    Path("folder").mkdir()
    assert "folder' is not a file: check the path" in refused("fit", "--config", "folder")
    Path("b.yaml").write_bytes(bytes(range(256)))
    assert "--config 'b.yaml' is not valid YAML: 'utf-8'" in refused("fit", "--config", "b.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.devices", "abc"], r"\(given: --trainer.devices 'abc'; correct it\)$"),
        (["--trainer.max_time", "abc"], r"\(given: --trainer.max_time 'abc'; correct it\)$"),
        (["--trainer.devices", "9" * 40], r"devices is 9+; expected at most 4096"),
        (["--trainer.accelerator", "tpu"], r"'torch_xla.*' not met.* --trainer.accelerator 'tpu'"),
        (
            ["--trainer.val_check_interval", "999"],
            r"^the trainer options do not work with the data.*`val_check_interval` \(999\)",
        ),
        (["--trainer.check_val_every_n_epoch", "0"], r"check_val_every_n_epoch is 0; expected 1 or more"),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=x", "--trainer.callbacks.mode=foo"],
            r"^lightning.pytorch.callbacks.EarlyStopping does not take .*\(`mode` can be min, max, got foo\): correct",
        ),
        (["--trainer.strategy", "dpp"], r"strategy 'dpp' is unknown; expected auto, ddp, fsdp2, .*; did you mean 'ddp'\?"),
        (["--trainer.accelerator", "gpuu"], r"accelerator 'gpuu' is unknown; expected auto, gpu, .*; did you mean 'gpu'\?"),
        (["--trainer.profiler", "simpel"], r"profiler 'simpel' is unknown; expected simple, .*; did you mean 'simple'\?"),
        (["--trainer.gradient_clip_algorithm", "nrom"], r"gradient_clip_algorithm 'nrom' is unknown; .*mean 'norm'\?"),
        (["--model.dict_kwargs.a=1"], r"Classification does not take .*unexpected keyword argument 'a'\)"),
    ],
)
def test_what_lightning_or_a_class_refuses_is_one_sentence(words: list[str], message: str, refused: Refused) -> None:
    assert re.search(message, refused("fit", "--config", QUICKSTART, *words))
    assert not Path("runs").exists()


WORDS = st.text("abcdelmnorstuy_", min_size=1, max_size=12)
# Parts that exist, so that what is wrong lies deep as well as at the top
PATHS = st.lists(
    st.one_of(st.sampled_from(["trainer", "model", "data", "dropkey", "init_args", "lr"]), WORDS), min_size=1, max_size=4
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2)
)


def refused_in_one_line(capsys: pytest.CaptureFixture[str], *words: str) -> bool:
    capsys.readouterr()
    code, err = main(words), capsys.readouterr().err
    return code == 2 and err.count("\n") == 1 and "Traceback" not in err


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, value=WORDS)
def test_any_option_is_refused_in_one_line(path: list[str], value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused_in_one_line(capsys, "fit", f"--{'.'.join(path)}", value)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, value=VALUES)
def test_any_config_is_refused_in_one_line(
    path: list[str], value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in reversed(path):
        value = {key: value}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(value))
    assert refused_in_one_line(capsys, "fit", "--config", str(tmp_path / "c.yaml"))
