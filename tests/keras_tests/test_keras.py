"""The tests of the installed Keras, by the layers that they are about."""

import inspect
import sys

import keras
import pytest
from keras.src import layers as layers_of_the_tests
from keras.src.layers.rnn.bidirectional_test import SimpleRNNTest as BidirectionalTest
from keras.src.layers.rnn.conv_lstm1d_test import ConvLSTM1DTest
from keras.src.layers.rnn.conv_lstm2d_test import ConvLSTM2DTest
from keras.src.layers.rnn.conv_lstm3d_test import ConvLSTM3DTest
from keras.src.layers.rnn.conv_lstm_test import ConvLSTM, ConvLSTMCellTest, ConvLSTMTest
from keras.src.layers.rnn.gru_test import GRUTest
from keras.src.layers.rnn.lstm_test import LSTMTest
from keras.src.layers.rnn.rnn_test import RNNTest
from keras.src.layers.rnn.stacked_rnn_cells_test import StackedRNNTest
from keras.src.layers.rnn.time_distributed_test import TimeDistributedTest

import multibackend_lstm
from keras_tests.conftest import IN_PLACE, all_differences

CLASSES = {
    "BidirectionalTest": BidirectionalTest,
    "ConvLSTM1DTest": ConvLSTM1DTest,
    "ConvLSTM2DTest": ConvLSTM2DTest,
    "ConvLSTM3DTest": ConvLSTM3DTest,
    "ConvLSTMCellTest": ConvLSTMCellTest,
    "ConvLSTMTest": ConvLSTMTest,
    "GRUTest": GRUTest,
    "LSTMTest": LSTMTest,
    "RNNTest": RNNTest,
    "StackedRNNTest": StackedRNNTest,
    "TimeDistributedTest": TimeDistributedTest,
}
ARGUMENTS = {
    "LSTM": {"units": 2},
    "GRU": {"units": 2},
    **{f"ConvLSTM{rank}D": {"filters": 2, "kernel_size": 2} for rank in (1, 2, 3)},
    "Bidirectional": {"layer": keras.layers.LSTM(2)},
    "TimeDistributed": {"layer": keras.layers.Dense(2)},
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_ours_stand_where_the_tests_take_their_layers(name):
    ours = getattr(multibackend_lstm, name)
    assert ours is not getattr(keras.layers, name)
    modules = [sys.modules[case.__module__] for case in CLASSES.values()]
    for module in modules:
        found = getattr(module, "layers", layers_of_the_tests)
        assert type(getattr(found, name)(**ARGUMENTS[name])) is ours


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ours_stand_for_the_base_class(rank):
    ours = getattr(multibackend_lstm, f"ConvLSTM{rank}D")
    assert type(ConvLSTM(rank=rank, filters=2, kernel_size=2)) is ours


def test_no_test_of_these_files_is_left_out():
    modules = {sys.modules[case.__module__] for case in CLASSES.values()}
    found = {
        value
        for module in modules
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, keras.src.testing.TestCase) and value.__module__ == module.__name__
    }
    assert found == set(CLASSES.values())


def test_every_entry_names_a_test():
    for entry in all_differences():
        for name in entry["tests"]:
            case, _, test = name.partition(".")
            assert callable(getattr(CLASSES[case], test, None)), f"{name} is no test of Keras"
