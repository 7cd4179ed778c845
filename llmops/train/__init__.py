"""Training: a recipe becomes a registered adapter; adapters trained elsewhere come in through the same checks."""
