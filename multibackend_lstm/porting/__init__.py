"""Models from elsewhere: weights from `torch.nn` and back, and legacy Keras files.

    from multibackend_lstm import porting

    porting.from_torch("weights.safetensors", model)      # or a module, or a state dict
    state_dict = porting.to_torch(model)
    porting.check_port(module, model).raise_if_different()

For PyTorch read it in this order: `torch_nn.py`, `state_dict.py`, `graph.py` and `axes.py` (what
the Keras model looks like from PyTorch), `torch_modules.py` and `weights.py` (one rule a kind of
layer), `matching.py`, then `checking.py`, `torch_twins.py` and `running.py`. The names below are
loaded on first use, so that importing this imports neither keras nor a backend.
"""

from typing import TYPE_CHECKING

from multibackend_lstm.lazy_names import lazy_names

if TYPE_CHECKING:
    from multibackend_lstm.porting.checking import check_port
    from multibackend_lstm.porting.errors import PortingError
    from multibackend_lstm.porting.legacy import Migration, replace_lambdas
    from multibackend_lstm.porting.model_files import ModelFileError
    from multibackend_lstm.porting.port_check import PortCheck
    from multibackend_lstm.porting.torch_nn import from_torch, to_torch

__all__ = [
    "Migration",
    "ModelFileError",
    "PortCheck",
    "PortingError",
    "check_port",
    "from_torch",
    "replace_lambdas",
    "to_torch",
]

_MODULE_OF = {
    "Migration": "legacy",
    "ModelFileError": "model_files",
    "PortCheck": "port_check",
    "PortingError": "errors",
    "check_port": "checking",
    "from_torch": "torch_nn",
    "replace_lambdas": "legacy",
    "to_torch": "torch_nn",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
