"""DeepConvLSTM in plain PyTorch, trained, ported, and equal on this backend."""

import keras
import numpy as np
import pytest

from multibackend_lstm import load_basic_motions
from multibackend_lstm.models import build_deep_conv_lstm
from multibackend_lstm.porting import check_port, from_torch, to_torch
from unit.tools import needs_gradients, to_numpy

torch = pytest.importorskip("torch")
nn = torch.nn


class DeepConvLSTM(nn.Module):
    """Ordonez and Roggen (2016), for input (batch, features, time, channels)."""

    def __init__(self, channels, features, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(features, 64, (5, 1))
        self.conv2 = nn.Conv2d(64, 64, (5, 1))
        self.conv3 = nn.Conv2d(64, 64, (5, 1))
        self.conv4 = nn.Conv2d(64, 64, (5, 1))
        self.lstm1 = nn.LSTM(64 * channels, 128, batch_first=True)
        self.lstm2 = nn.LSTM(128, 128, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(128, classes)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(conv(x))
        x = x.transpose(1, 2).flatten(2)  # (batch, time, filters * channels)
        x, _ = self.lstm1(self.dropout(x))
        x, _ = self.lstm2(self.dropout(x))
        return self.fc(x[:, -1])


@pytest.fixture(scope="module")
def trained():
    """The module after some steps of Adam on BasicMotions, and its test data."""
    data = load_basic_motions()
    mean, deviation = data.x_train.mean((0, 1)), data.x_train.std((0, 1))
    x, x_test = (((v - mean) / deviation).astype("float32")[:, ::2] for v in
                 (data.x_train, data.x_test))  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = DeepConvLSTM(x.shape[2], x.shape[3], 4)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    inputs = torch.tensor(x).permute(0, 3, 1, 2)
    labels = torch.tensor(data.y_train.astype("int64"))
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.set_num_threads(threads)
    assert losses[-1] < losses[0]
    return module.eval(), x_test[::4]


def probabilities(module, x):
    with torch.no_grad():
        return module(torch.tensor(x).permute(0, 3, 1, 2)).softmax(-1).numpy()


def test_its_keras_model_predicts_the_same(trained):
    module, x = trained
    model = build_deep_conv_lstm(x.shape[1:], outputs=4)
    from_torch(module, model)
    expected = probabilities(module, x)
    predicted = to_numpy(model(x, training=False))
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    assert np.ptp(expected, axis=0).min() > 1e-3  # it tells the cases apart

    back = to_torch(model, DeepConvLSTM(x.shape[2], x.shape[3], 4)).eval()
    np.testing.assert_allclose(probabilities(back, x), expected, atol=1e-6)

    from_torch(module, model, flatten_order="channels_last")  # the columns are not permuted
    assert np.abs(to_numpy(model(x, training=False)) - expected).max() > 1e-4


@pytest.mark.slow
@needs_gradients
def test_gradients_are_the_same(trained):
    module, x = trained
    model = build_deep_conv_lstm(x.shape[1:], outputs=4)
    from_torch(module, model)
    check_port(
        module,
        model,
        inputs=x[:3],
        forward=lambda m, x: m(x.permute(0, 3, 1, 2)).softmax(-1),
    ).raise_if_disagrees()
    assert isinstance(model, keras.Model)
