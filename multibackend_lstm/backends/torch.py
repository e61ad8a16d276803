"""The PyTorch backend."""

from multibackend_lstm.backends.numpy import concatenate_steps

__all__ = ["concatenate_steps"]
