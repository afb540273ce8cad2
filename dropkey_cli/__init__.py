"""DropKey for vision transformers (Li et al., CVPR 2023, arXiv:2208.02646): a command-line application and a small library.

Importing this package imports no torch; the public names are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dropkey_cli.method.attention import dropkey_attention as dropkey_attention
    from dropkey_cli.method.mask import dropkey_mask as dropkey_mask
    from dropkey_cli.method.settings import DropKeySettings as DropKeySettings
    from dropkey_cli.patching.apply import apply_dropkey as apply_dropkey

__version__ = "0.1.0"

_HOMES = {
    "apply_dropkey": "dropkey_cli.patching.apply",
    "dropkey_attention": "dropkey_cli.method.attention",
    "dropkey_mask": "dropkey_cli.method.mask",
    "DropKeySettings": "dropkey_cli.method.settings",
}

__all__ = ["DropKeySettings", "__version__", "apply_dropkey", "dropkey_attention", "dropkey_mask"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
