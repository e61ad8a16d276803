"""A trained model, fed sample by sample: its network for one time step, with explicit states."""

from multibackend_lstm.lazy_names import lazy_names

__all__ = ["Stream", "to_step_model"]

__getattr__, __dir__ = lazy_names(__name__, {"Stream": "stream", "to_step_model": "step_model"})
