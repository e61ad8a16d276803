"""Recurrent models on (batch, time, channels, features) tensors, alike on every Keras backend.

The public names are loaded on first use (PEP 562): importing this package imports neither
keras nor a backend, so `KERAS_BACKEND` may still be set afterwards. If it is not, an installed
backend is chosen when keras is imported: `keras_import.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

from multibackend_lstm.keras_import import prepare_keras_import
from multibackend_lstm.lazy_names import lazy_names

if TYPE_CHECKING:
    from multibackend_lstm.data import (
        flatten_features,
        layout,
        load_basic_motions,
        pad_sequences,
        split_windows,
        unflatten_features,
        windows,
    )

    # Not in __all__: `import *` must not need the extra `sklearn`.
    from multibackend_lstm.estimators import LSTMClassifier as LSTMClassifier
    from multibackend_lstm.estimators import LSTMRegressor as LSTMRegressor
    from multibackend_lstm.layers import (
        GRU,
        LSTM,
        Bidirectional,
        Channelwise,
        ConvLSTM1D,
        ConvLSTM2D,
        ConvLSTM3D,
        Dropout,
        FlattenFeatures,
        GaussianDropout,
        GaussianNoise,
        LengthMasking,
        Normalization,
        SpatialDropout1D,
        SpatialDropout2D,
        TimeDistributed,
        TimeDistributedConv,
    )
    from multibackend_lstm.models import build_deep_conv_lstm, build_mlstm_fcn, build_model
    from multibackend_lstm.sensor_model import SensorModel
    from multibackend_lstm.solutions import SOLUTIONS
    from multibackend_lstm.streaming.step_model import to_step_model
    from multibackend_lstm.streaming.stream import Stream
    from multibackend_lstm.upgrading import Upgrade, upgrade

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "SOLUTIONS",
    "Bidirectional",
    "Channelwise",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
    "Dropout",
    "FlattenFeatures",
    "GaussianDropout",
    "GaussianNoise",
    "LengthMasking",
    "Normalization",
    "SensorModel",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "Stream",
    "TimeDistributed",
    "TimeDistributedConv",
    "Upgrade",
    "build_deep_conv_lstm",
    "build_mlstm_fcn",
    "build_model",
    "flatten_features",
    "layout",
    "load_basic_motions",
    "pad_sequences",
    "split_windows",
    "to_step_model",
    "unflatten_features",
    "upgrade",
    "windows",
]

_MODULE_OF = {
    "SOLUTIONS": "solutions",
    "GRU": "layers",
    "LSTM": "layers",
    "Bidirectional": "layers",
    "ConvLSTM1D": "layers",
    "ConvLSTM2D": "layers",
    "ConvLSTM3D": "layers",
    "Channelwise": "layers",
    "Dropout": "layers",
    "FlattenFeatures": "layers",
    "GaussianDropout": "layers",
    "GaussianNoise": "layers",
    "LengthMasking": "layers",
    "Normalization": "layers",
    "SpatialDropout1D": "layers",
    "SpatialDropout2D": "layers",
    "TimeDistributed": "layers",
    "TimeDistributedConv": "layers",
    "build_deep_conv_lstm": "models",
    "build_mlstm_fcn": "models",
    "build_model": "models",
    "flatten_features": "data",
    "layout": "data",
    "load_basic_motions": "data",
    "pad_sequences": "data",
    "split_windows": "data",
    "unflatten_features": "data",
    "windows": "data",
    "SensorModel": "sensor_model",
    "LSTMClassifier": "estimators",
    "LSTMRegressor": "estimators",
    "Stream": "streaming",
    "to_step_model": "streaming",
    "Upgrade": "upgrading",
    "upgrade": "upgrading",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)


prepare_keras_import()


def _follow_keras(keras: Any) -> None:
    if keras.__version__.startswith("2."):
        return  # an old file is run by the Keras of its time, which knows no layers of ours
    import_module(f"{__name__}.layers")
    import_module(f"{__name__}.sensor_model")
    import_module(f"{__name__}.compile_configs").make_portable()


# A saved model names its layers as "multibackend_lstm>..."; Keras finds them once the module
# that registers them is imported, so that follows the import of keras, whichever comes first.
register_post_import_hook(_follow_keras, "keras")
