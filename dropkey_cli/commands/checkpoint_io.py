"""How checkpoints reach the disk: whole, or not at all."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dropkey_cli.errors import RunError
from dropkey_cli.files import resume_command, whole_file


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is on the disk: until then the earlier one stays.

    Lightning writes to a temporary folder, and from another file system it copies: a process that is killed then leaves half
    a file under the checkpoint's name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            RunError: If the disk is full or cannot be written; the earlier file is untouched.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as a RuntimeError
            cause = next((each for each in (error, error.__context__) if isinstance(each, OSError)), error)
            reason = cause.strerror if isinstance(cause, OSError) else str(cause).splitlines()[0]
            kept = "; the one before is intact" if path.exists() else ""
            raise RunError(
                f"cannot write the checkpoint {str(path)!r} ({reason}){kept}: free some space or mend the folder, then go on "
                f"with {resume_command(path.parent.parent)}"
            ) from error
