"""What ended a run though its input was right: full disks, lost processes, memory; one sentence each with what to do."""

import errno
import re

from dropkey_cli.commands.processes import lost_process
from dropkey_cli.errors import InputError, RunError

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
_SHARED_MEMORY = re.compile(r"shared memory|Bus error|</torch_|torch_shm_manager")
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\.|exited unexpectedly)")
_FILES = ("Too many open files", "received 0 items of ancdata")


def explained(error: BaseException | None) -> InputError | RunError | None:
    """The error with a message for the user that an error was raised from; None where there is nothing to say."""
    while error is not None and not isinstance(error, InputError | RunError):
        if isinstance(error, OSError | RuntimeError) and (sentence := _sentence(error)) is not None:
            return RunError(sentence)
        error = error.__cause__ or error.__context__
    return error


def _sentence(error: OSError | RuntimeError) -> str | None:
    message = " ".join(str(error).split())
    if any(words in message for words in _FILES):
        return "the processes that load images have too many files open: ulimit -n 65536, or fewer --data.num_workers, e.g. 2"
    if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(message):
        return (
            "the processes that load images ran out of shared memory (/dev/shm): give docker run --shm-size=4g, "
            "or load in this process, --data.num_workers 0"
        )
    if worker := _WORKER.search(message):
        how = f"was ended by the signal {worker[2]!r}" if worker[2] else "has ended unexpectedly"
        return (
            f"a process that loads images (number {worker[1]}) {how}, mostly because the machine's memory is full: "
            "give fewer --data.num_workers, e.g. 2, or a smaller --data.batch_size"
        )
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"writing failed ({error}): free some space or mend the folder"
    if lost_process(error):
        return "another process of this run has ended: what it printed, or the system's log, says why; mend that"
    return None
