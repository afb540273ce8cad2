"""Models by where they lie, hf-hub:USER/NAME and local-dir:FOLDER: the architecture, arguments and weights they stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from timm.models import PretrainedCfg, parse_model_name
from timm.models._hub import _PREFERRED_FILES, load_model_config_from_path

from dropkey_cli.errors import InputError, first_line
from dropkey_cli.models.availability import cached_hub_file, check_hub_file, unreachable_hub

CONFIG = "config.json"
SOURCES = "hf-hub:USER/NAME or local-dir:FOLDER"


def _is_number(value: Any) -> bool:  # noqa: ANN401 - anything that JSON can hold
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(side, int) and side > 0 for side in value)


def _are_numbers(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_number, value))


def _are_names(value: Any) -> bool:  # noqa: ANN401
    return value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


# What is taken of a model's own description: its images and its ends. Where its weights lie is not for it to say.
_TAKEN: dict[str, Callable[[Any], bool]] = {
    "input_size": _is_size,
    "fixed_input_size": lambda value: isinstance(value, bool),
    "mean": _are_numbers,
    "std": _are_numbers,
    "interpolation": lambda value: isinstance(value, str),
    "crop_pct": _is_number,
    "crop_mode": lambda value: isinstance(value, str),
    "num_classes": lambda value: isinstance(value, int),
    "license": lambda value: isinstance(value, str | None),
    "first_conv": _are_names,
    "classifier": _are_names,
}
# Of the constructor's arguments, what input_size, num_classes and the user say
_NOT_TAKEN = {"img_size", "num_classes"}
RGB = ("in_chans", 3)


class Saved(NamedTuple):
    """What a model's ``config.json`` says."""

    architecture: str
    model_args: dict[str, Any]
    config: dict[str, Any]
    class_names: list[str] | None


def resolve_name(model_name: str, model_args: dict[str, Any] | None = None) -> tuple[str, dict[str, Any] | None]:
    """A model's name and arguments as everything here takes them: names without a source stay as they are.

    A model of the hub or in a folder becomes its architecture, and what its ``config.json`` says becomes arguments: those of
    the constructor and, as ``pretrained_cfg_overlay``, where the weights lie and which images they expect. So a run's
    config.yaml and its checkpoints need neither the hub nor the folder.

    Args:
        model_name: timm's name, hf-hub:USER/NAME (of timm's kind; @REVISION may follow) or local-dir:FOLDER.
        model_args: Further arguments; they win over those that the model was saved with.

    Raises:
        InputError: If the source is unknown, or its config.json is not there, cannot be fetched or is not timm's.
    """
    source, place = _parse(model_name)
    if source is None:
        return model_name, model_args
    if source == "hf-hub":
        saved, where = _read(_fetch_config(model_name, place), model_name), {"hf_hub_id": place, "hf_hub_filename": None}
    else:
        folder = Path(place).expanduser()
        if not folder.is_dir():
            raise InputError(f"{model_name!r}: there is no folder {str(folder)!r}; check the path")
        names = [name for name in _PREFERRED_FILES if (folder / name).is_file()]
        saved, where = _read(folder / CONFIG, model_name), {"file": str(folder / (names or _PREFERRED_FILES)[0])}
    given = dict(model_args or {})
    own = given.pop("pretrained_cfg_overlay", None) or {}
    if others := [name for name in ("file", "hf_hub_id", "url") if name in own]:  # of a config that is of another model
        raise InputError(
            f"{model_name!r} names its weights, and so does model_args, with {others[0]} {own[others[0]]!r}: leave one of them "
            "out; --model.model_args null leaves out what a config gave to another model"
        )
    overlay = {"license": None, **saved.config, **where, **own}
    return saved.architecture, {**saved.model_args, **given, "pretrained_cfg_overlay": overlay}


def saved_beside(weights: PretrainedCfg) -> Saved | None:
    """What the ``config.json`` that lies with weights says; None where there is none, or none of timm's."""
    if weights.file is not None:
        path: str | Path | None = Path(weights.file).with_name(CONFIG)
    else:
        path = cached_hub_file(weights.hf_hub_id, CONFIG) if weights.hf_hub_id else None
    try:
        return None if path is None else _read(Path(path), str(path))
    except InputError:
        return None


def _parse(model_name: str) -> tuple[str | None, str]:
    try:
        return parse_model_name(model_name)
    except ValueError as error:
        raise InputError(f"{error} Give a name that dropkey models lists, {SOURCES}.") from error


def _fetch_config(model_name: str, hub_id: str) -> Path:
    """The model's config.json, a few kilobytes, from the hub or the cache."""
    what = f"the config.json and the weights of {model_name}"
    check_hub_file(what, hub_id, (CONFIG,), remedy="take a model of a folder: local-dir:FOLDER")
    cached = cached_hub_file(hub_id, CONFIG)
    if cached is not None and unreachable_hub():
        return Path(cached)
    repository, _, revision = hub_id.partition("@")
    try:
        return Path(hf_hub_download(repository, CONFIG, revision=revision or None))
    except Exception as error:  # the hub has a dozen kinds: no such model, not public, no such revision …
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{model_name!r}: the hub gives no {CONFIG} ({reason}): check the name, or log in with: hf auth login"
        ) from error


def _read(path: Path, model_name: str) -> Saved:
    """What a config.json says, checked: it is a stranger's text."""
    try:
        # timm makes tuples of some lists; what goes into a config.yaml and a checkpoint is plain
        config, architecture, model_args = json.loads(json.dumps(load_model_config_from_path(path.parent)))
        label_names, taken = config.get("label_names"), {name: config[name] for name in _TAKEN if name in config}
        if (size := model_args.get("img_size")) is not None:  # that of the weights, whatever images timm recommends
            taken["input_size"] = [taken.get("input_size", [3])[0], *(size if isinstance(size, list) else [size, size])]
        model_args = {name: value for name, value in model_args.items() if name not in _NOT_TAKEN and (name, value) != RGB}
        class_names = _in_order(label_names) if label_names else None
    except FileNotFoundError as error:
        raise InputError(f"{model_name!r} has no {CONFIG}: {str(path)!r} is not there; {_made_by()}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{model_name!r}: its {CONFIG} is not timm's ({type(error).__name__}: {error}); {_made_by()}"
        ) from error
    wrong = [name for name, value in taken.items() if not _TAKEN[name](value)]
    if not isinstance(architecture, str) or wrong:
        named = f"{wrong[0]} {taken[wrong[0]]!r}" if wrong else f"architecture {architecture!r}"
        raise InputError(f"{model_name!r}: its {CONFIG} has {named}, which cannot be; {_made_by()}")
    return Saved(architecture, model_args, taken, class_names)


def _in_order(label_names: Any) -> list[str]:  # noqa: ANN401 - a list, or a mapping from number to name
    if isinstance(label_names, dict):
        label_names = [label_names[key] for key in sorted(label_names, key=int)]
    return [str(name) for name in label_names]


def _made_by() -> str:
    return "give a model that dropkey export or timm saved"
