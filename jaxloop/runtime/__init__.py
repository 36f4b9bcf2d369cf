"""What a run needs from the machine: devices, files, checkpoints, signals."""
