"""Measures every architecture for the shipped table (catalog.py): how many attention layers take DropKey.

After an upgrade of timm, a change of patching/known.py or a new network, measure anew (some ten minutes on two cores;
with patterns, only the lines of the architectures that match):

    python -m dropkey_cli.models.census
    python -m dropkey_cli.models.census 't2t_vit_*' 'ceit_*'
"""

import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import timm
import torch
from timm.models import PretrainedCfg

from dropkey_cli.catalog import TABLE, Catalog, CatalogEntry, read_catalog, write_catalog
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.discovery import AttentionCall, image_inputs, record_attention
from dropkey_cli.patching.selection import NoAttentionError, select_layers


def measure(name: str) -> CatalogEntry:
    """The entry of any architecture that timm can build, in about a second. One that DropKey refuses has its reason."""
    try:
        parameters, calls = record(name)
    except InputError as error:
        return entry_of(name, None, 0, str(error))
    return summarise(name, parameters, calls)


def record(name: str) -> tuple[int, list[AttentionCall]]:
    """Build an architecture without weights and run it once: its number of parameters and its attention calls.

    Raises:
        InputError: If it cannot be built or run.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(name)
    except Exception as error:  # each constructor has its own kinds
        raise InputError(f"timm cannot build {name} without weights: {type(error).__name__}: {error}") from error
    return sum(parameter.numel() for parameter in model.parameters()), record_attention(model, image_inputs(model))


def summarise(name: str, parameters: int, calls: list[AttentionCall]) -> CatalogEntry:
    """The entry of an architecture that was recorded."""
    try:
        selected = select_layers(calls, DropKeySettings(), model_name=name).selected
    except NoAttentionError as error:
        phrases = [f"{layer.class_name.rpartition('.')[2]} {layer.why}" for layer in error.left_alone]
        return entry_of(name, parameters, 0, "; ".join(phrases) or "no attention")
    except InputError as error:  # an unknown class attends
        return entry_of(name, parameters, 0, str(error))
    return entry_of(name, parameters, len(selected), None)


def entry_of(name: str, parameters: int | None, attention_layers: int, reason: str | None) -> CatalogEntry:
    """The entry of an architecture, or of one of its weights (with a tag): what was measured, and what timm says of weights."""
    architecture, _, tag = name.partition(".")
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    tags = [tag] if tag else [weights.partition(".")[2] for weights in timm.list_pretrained(f"{architecture}.*")]
    return CatalogEntry(
        name=name,
        parameters=parameters,
        input_size=config.input_size,
        pretrained=tuple(sorted(tags, key=lambda tag: tag != config.tag)),  # the default first
        licence=config.license if tags else None,
        attention_layers=attention_layers,
        reason=reason,
    )


def take_census(patterns: list[str]) -> int:
    """Measure architectures, in one process per core, and write their lines into the table.

    Args:
        patterns: Which ones (``*``, ``?``, ``[…]``); none for all. Lines of architectures that are gone are removed.

    Returns:
        The number of architectures measured.

    Raises:
        InputError: If only some are asked for and the others were measured with another timm.
    """
    kept = read_catalog() if patterns else Catalog(timm.__version__, {})
    if kept.timm_version != timm.__version__:
        raise InputError(
            f"{TABLE.name} is of timm {kept.timm_version}, this is {timm.__version__}: measure all, without a pattern"
        )
    names = timm.list_models(patterns)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        entries = kept.entries | {entry.name: entry for entry in pool.map(measure, names, chunksize=8)}
    in_order = {name: entries[name] for name in timm.list_models() if name in entries}
    write_catalog(Catalog(timm.__version__, in_order))
    return len(names)


if __name__ == "__main__":
    print(f"{take_census(sys.argv[1:])} architectures measured; the table is {TABLE}")
