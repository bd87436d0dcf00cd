"""The training engine: launch, loop, saving and distributed processes."""
