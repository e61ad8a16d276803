"""Whatever can compute a model, one class each, with what a comparison asks of it."""
