"""Commands, output, storage and their processes on this machine."""
