"""The sub-commands of ``dropkey``, one file each, imported only when they run."""
