"""Whatever can compute a model: Keras backends, artefact engines, other interpreters."""
