"""Everything around the training step: launch, loop, saving, processes."""
