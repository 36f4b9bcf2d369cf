"""The decoder as pure functions: configuration, layers, attention, positions, LoRA."""
