"""Models as people write them in PyTorch, each with its Keras twin: the same numbers and gradients.

Small, and in our own words, after the papers and forms that their docstrings name. Further ones are
in other files: DeepConvLSTM, a temporal convolutional network with weight normalisation, a tied
language model, cells in a loop.
"""

import copy
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

from multibackend_lstm import GRU, LSTM, Bidirectional
from multibackend_lstm.agreement import DisagreementError
from multibackend_lstm.porting import PortingError, check_port, from_torch, to_torch
from unit.tools import needs_gradients, normal
from unit.torch_weights.test_conversion import assert_same, randomise

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional
layers = keras.layers

EPS = {"epsilon": 1e-5}  # of PyTorch's normalisations


def channels_first(module, x):
    """Series come as (batch, time, features) in Keras, and go into convolutions of PyTorch."""
    return module(x.movedim(-1, 1))


class LSTMClassifier(nn.Module):
    """Stacked, with dropout between; the last hidden state is classified."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 5, num_layers=2, batch_first=True, dropout=0.3)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        _, (hidden, _) = self.rnn(x)
        return self.head(hidden[-1])


def keras_lstm_classifier():
    return keras.Sequential(
        [
            keras.Input((7, 3)),
            LSTM(5, return_sequences=True),
            layers.Dropout(0.3),
            LSTM(5),
            layers.Dropout(0.5),
            layers.Dense(4, "relu"),
            layers.Dense(2),
        ]
    )


class PackedTagger(nn.Module):
    """Token embeddings, a bidirectional LSTM over packed sequences, both last states."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.lstm = nn.LSTM(4, 3, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, tokens):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(tokens), (tokens != 0).sum(1), batch_first=True, enforce_sorted=False
        )
        _, (hidden, _) = self.lstm(packed)
        return self.fc(torch.cat([hidden[0], hidden[1]], dim=1))


TOKENS = np.array([[3, 1, 8, 2, 5], [7, 7, 0, 0, 0], [1, 2, 3, 0, 0]], "int32")


def keras_packed_tagger():
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            Bidirectional(LSTM(3)),
            layers.Dense(2),
        ]
    )


class Seq2SeqAttention(nn.Module):
    """Encoder and decoder with teacher forcing, and Luong's dot attention between them."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(3, 4, batch_first=True)
        self.decoder = nn.GRU(2, 4, batch_first=True)
        self.combine = nn.Linear(8, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, source, target):
        memory, state = self.encoder(source)
        decoded, _ = self.decoder(target, state)
        weights = torch.bmm(decoded, memory.transpose(1, 2)).softmax(-1)
        context = torch.bmm(weights, memory)
        return self.out(torch.tanh(self.combine(torch.cat([context, decoded], -1))))


def keras_seq2seq_attention():
    source, target = keras.Input((6, 3)), keras.Input((5, 2))
    memory, state = GRU(4, return_sequences=True, return_state=True, name="encoder")(source)
    decoded = GRU(4, return_sequences=True, name="decoder")(target, initial_state=[state])
    context = layers.Attention()([decoded, memory])
    x = layers.Dense(4, "tanh", name="combine")(layers.Concatenate()([context, decoded]))
    return keras.Model([source, target], layers.Dense(2, name="out")(x))


class WaveNet(nn.Module):
    """Gated causal convolutions of growing dilation, with residual and skip paths."""

    def __init__(self):
        super().__init__()
        self.start = nn.Conv1d(2, 4, 1)
        self.filters = nn.ModuleList(nn.Conv1d(4, 4, 2, dilation=2**i) for i in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(4, 4, 2, dilation=2**i) for i in range(3))
        self.residuals = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(4, 6, 1) for _ in range(3))
        self.end = nn.Conv1d(6, 2, 1)

    def forward(self, x):
        x = self.start(x)
        total = 0
        for i in range(3):
            padded = F.pad(x, (2**i, 0))
            y = torch.tanh(self.filters[i](padded)) * torch.sigmoid(self.gates[i](padded))
            total = total + self.skips[i](y)
            if i < 2:
                x = x + self.residuals[i](y)
        return self.end(torch.relu(total))


def keras_wavenet():
    inputs = keras.Input((12, 2))
    x = layers.Conv1D(4, 1, name="start")(inputs)
    skips = []
    for i in range(3):
        causal = {"padding": "causal", "dilation_rate": 2**i}
        y = layers.Conv1D(4, 2, activation="tanh", name=f"filters_{i}", **causal)(x)
        gate = layers.Conv1D(4, 2, activation="sigmoid", name=f"gates_{i}", **causal)(x)
        y = layers.Multiply()([y, gate])
        skips.append(layers.Conv1D(6, 1, name=f"skips_{i}")(y))
        if i < 2:
            x = layers.Add()([x, layers.Conv1D(4, 1, name=f"residuals_{i}")(y)])
    total = layers.ReLU()(layers.Add()(skips))
    return keras.Model(inputs, layers.Conv1D(2, 1, name="end")(total))


WAVENET_NAMES = {
    **{f"{part}.{i}": f"{part}_{i}" for part in ("filters", "gates", "residuals", "skips")
       for i in range(2 if part == "residuals" else 3)},
    "start": "start", "end": "end",
}  # fmt: skip


class CNNLSTM(nn.Module):
    """Convolutions and pooling over time, an LSTM over what is left of it."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2),
        )  # fmt: skip
        self.lstm = nn.LSTM(8, 5, batch_first=True)
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        x = self.features(x).permute(0, 2, 1)
        return self.fc(self.lstm(x)[0][:, -1, :])


def keras_cnn_lstm():
    return keras.Sequential(
        [
            keras.Input((16, 3)),
            layers.Conv1D(6, 3, padding="same", activation="relu"),
            layers.MaxPooling1D(2),
            layers.Conv1D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling1D(2),
            LSTM(5),
            layers.Dense(2),
        ]
    )


class DecayedGRU(nn.Module):
    """The input side of GRU-D (Che et al. 2018): missing values decay to the mean."""

    def __init__(self):
        super().__init__()
        self.decay = nn.Linear(3, 3)
        self.gru = nn.GRU(6, 4, batch_first=True)
        self.fc = nn.Linear(4, 1)

    def forward(self, x, last, mask, elapsed):
        gamma = torch.exp(-torch.relu(self.decay(elapsed)))
        mean = x.mean(1, keepdim=True)
        filled = mask * x + (1 - mask) * (gamma * last + (1 - gamma) * mean)
        return torch.sigmoid(self.fc(self.gru(torch.cat([filled, mask], -1))[1][-1]))


def keras_decayed_gru():
    x, last, mask, elapsed = (keras.Input((6, 3)) for _ in range(4))
    gamma = ops.exp(-layers.Dense(3, "relu", name="decay")(elapsed))
    mean = ops.mean(x, axis=1, keepdims=True)
    filled = mask * x + (1 - mask) * (gamma * last + (1 - gamma) * mean)
    hidden = GRU(4, name="gru")(layers.Concatenate()([filled, mask]))
    return keras.Model([x, last, mask, elapsed], layers.Dense(1, "sigmoid", name="fc")(hidden))


def positions(steps, width):
    """Sines and cosines of Vaswani et al. (2017)."""
    angles = np.arange(steps)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(steps, width).astype("float32")


class TransformerClassifier(nn.Module):
    """`nn.TransformerEncoder` over projected samples, averaged over time."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 4)
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(4, 2)
        self.register_buffer("places", torch.tensor(positions(5, 4)), persistent=False)

    def forward(self, x):
        return self.head(self.encoder(self.project(x) + self.places).mean(1))


def transformer_block(x, start, feed, causal=False, norm_first=False, activation=ops.relu):
    attention = layers.MultiHeadAttention(2, 2, name=f"{start}attention")
    norms = [layers.LayerNormalization(name=f"{start}norm{i}", **EPS) for i in (1, 2)]
    first = layers.Dense(feed, name=f"{start}linear1")
    second = layers.Dense(4, name=f"{start}linear2")
    if norm_first:
        y = norms[0](x)
        x = layers.Add()([x, attention(y, y, use_causal_mask=causal)])
        return layers.Add()([x, second(activation(first(norms[1](x))))])
    x = norms[0](layers.Add()([x, attention(x, x, use_causal_mask=causal)]))
    return norms[1](layers.Add()([x, second(activation(first(x)))]))


def block_names(torch_prefix, start):
    return {
        f"{torch_prefix}.self_attn": f"{start}attention",
        **{f"{torch_prefix}.{n}": f"{start}{n}" for n in ("norm1", "norm2", "linear1", "linear2")},
    }


def keras_transformer_classifier():
    inputs = keras.Input((5, 3))
    x = layers.Dense(4, name="project")(inputs) + positions(5, 4)
    for i in range(2):
        x = transformer_block(x, f"block{i}_", 6)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


TRANSFORMER_NAMES = {
    "project": "project", "head": "head",
    **block_names("encoder.layers.0", "block0_"), **block_names("encoder.layers.1", "block1_"),
}  # fmt: skip


class CausalTransformer(nn.Module):
    """A decoder alone, as language models are: pre-norm, GELU, a causal mask."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        self.places = nn.Embedding(5, 4)
        self.block = nn.TransformerEncoderLayer(
            4, 2, 8, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 9, bias=False)

    def forward(self, tokens, places):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=torch.float64)
        x = self.tokens(tokens) + self.places(places)
        return self.head(self.norm(self.block(x, src_mask=mask, is_causal=True)))


def keras_causal_transformer():
    tokens, places = keras.Input((5,), dtype="int32"), keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4, name="tokens")(tokens)
    x = layers.Add()([x, layers.Embedding(5, 4, name="places")(places)])
    gelu = partial(ops.gelu, approximate=False)
    x = transformer_block(x, "block_", 8, causal=True, norm_first=True, activation=gelu)
    x = layers.LayerNormalization(name="norm", **EPS)(x)
    return keras.Model([tokens, places], layers.Dense(9, use_bias=False, name="head")(x))


CAUSAL_NAMES = {
    **{name: name for name in ("tokens", "places", "norm", "head")},
    **block_names("block", "block_"),
}
PLACES = np.tile(np.arange(5, dtype="int32"), (3, 1))


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(outputs)
        self.shortcut = nn.Sequential(
            nn.Conv1d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm1d(outputs)
        )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet1D(nn.Module):
    """Residual blocks (He et al. 2016) over time, with strides."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(3, 4, 7, padding=3)
        self.block1 = ResidualBlock(4, 5, 2)
        self.block2 = ResidualBlock(5, 6, 2)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        x = self.block2(self.block1(torch.relu(self.stem(x))))
        return self.fc(F.adaptive_avg_pool1d(x, 1).squeeze(-1))


def keras_resnet1d():
    def conv(x, filters, kernel, stride=1, pad=0, **options):
        # PyTorch pads both sides alike; "same" of Keras with a stride does not.
        return layers.Conv1D(filters, kernel, stride, **options)(layers.ZeroPadding1D(pad)(x))

    inputs = keras.Input((15, 3))
    x = conv(inputs, 4, 7, pad=3, activation="relu", name="stem")
    for i, filters in ((1, 5), (2, 6)):
        start = f"block{i}_"
        y = conv(x, filters, 3, 2, 1, use_bias=False, name=f"{start}conv1")
        y = layers.ReLU()(layers.BatchNormalization(name=f"{start}bn1", **EPS)(y))
        y = conv(y, filters, 3, 1, 1, use_bias=False, name=f"{start}conv2")
        y = layers.BatchNormalization(name=f"{start}bn2", **EPS)(y)
        x = conv(x, filters, 1, 2, use_bias=False, name=f"{start}shortcut0")
        x = layers.BatchNormalization(name=f"{start}shortcut1", **EPS)(x)
        x = layers.ReLU()(layers.Add()([y, x]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, name="fc")(x))


RESNET_NAMES = {
    "stem": "stem", "fc": "fc",
    **{f"block{i}.{part}": f"block{i}_{part.replace('.', '')}" for i in (1, 2)
       for part in ("conv1", "conv2", "bn1", "bn2", "shortcut.0", "shortcut.1")},
}  # fmt: skip


class InceptionTime(nn.Module):
    """One module of InceptionTime (Ismail Fawaz et al. 2020), with its residual path."""

    def __init__(self):
        super().__init__()
        self.bottleneck = nn.Conv1d(3, 4, 1, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv1d(4, 2, size, padding=size // 2, bias=False) for size in (9, 5, 3)
        )
        self.pool = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(3, 2, 1, bias=False))
        self.norm = nn.BatchNorm1d(8)
        self.residual = nn.Conv1d(3, 8, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        y = self.bottleneck(x)
        y = torch.cat([*(conv(y) for conv in self.convs), self.pool(x)], dim=1)
        return self.fc(torch.relu(self.norm(y) + self.residual(x)).mean(-1))


def keras_inception_time():
    inputs = keras.Input((14, 3))
    same = {"padding": "same", "use_bias": False}
    x = layers.Conv1D(4, 1, name="bottleneck", **same)(inputs)
    parts = [layers.Conv1D(2, size, **same)(x) for size in (9, 5, 3)]
    pooled = layers.MaxPooling1D(3, 1, "same")(inputs)
    parts.append(layers.Conv1D(2, 1, **same)(pooled))
    x = layers.BatchNormalization(**EPS)(layers.Concatenate()(parts))
    x = layers.ReLU()(layers.Add()([x, layers.Conv1D(8, 1)(inputs)]))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


class LSTMAutoencoder(nn.Module):
    """The last state, repeated for each step, is what the decoder has to go by."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(3, 4, batch_first=True)
        self.decoder = nn.LSTM(4, 5, batch_first=True)
        self.output = nn.Linear(5, 3)

    def forward(self, x):
        _, (code, _) = self.encoder(x)
        repeated = code[-1].unsqueeze(1).repeat(1, x.shape[1], 1)
        return self.output(self.decoder(repeated)[0])


def keras_lstm_autoencoder():
    return keras.Sequential(
        [
            keras.Input((6, 3)),
            LSTM(4, name="encoder"),
            layers.RepeatVector(6),
            LSTM(5, return_sequences=True, name="decoder"),
            layers.TimeDistributed(layers.Dense(3), name="output"),
        ]
    )


class CRNN(nn.Module):
    """Images of text or spectra (Shi et al. 2017): the width is the time of a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.rnn = nn.LSTM(4 * 2, 5, bidirectional=True)
        self.fc = nn.Linear(10, 7)

    def forward(self, x):  # (batch, 1, height, width)
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.norm(self.conv2(x))), (2, 1))
        x = x.permute(3, 0, 1, 2).flatten(2)  # (width, batch, filters * height)
        return self.fc(self.rnn(x)[0]).log_softmax(-1)


def call_crnn(module, x):
    return module(x.movedim(-1, 1)).transpose(0, 1)


def keras_crnn():
    inputs = keras.Input((8, 12, 1))
    x = layers.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(4, 3, padding="same")(layers.MaxPooling2D(2)(x))
    x = layers.MaxPooling2D((2, 1))(layers.ReLU()(layers.BatchNormalization(**EPS)(x)))
    x = layers.Reshape((6, 8))(layers.Permute((2, 1, 3))(x))
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(x)
    return keras.Model(inputs, ops.log_softmax(layers.Dense(7)(x), -1))


class FCN(nn.Module):
    """A fully convolutional network for series (Wang et al. 2017)."""

    def __init__(self):
        super().__init__()
        sizes = ((3, 4, 7), (4, 6, 5), (6, 4, 3))
        self.net = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(a, b, k, padding="same"), nn.BatchNorm1d(b), nn.ReLU())
                for a, b, k in sizes
            ),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        return self.net(x)


def keras_fcn():
    model = keras.Sequential([keras.Input((11, 3))])
    for filters, size in ((4, 7), (6, 5), (4, 3)):
        model.add(layers.Conv1D(filters, size, padding="same"))
        model.add(layers.BatchNormalization(**EPS))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling1D())
    model.add(layers.Dense(2))
    return model


class QRNN(nn.Module):
    """A quasi-recurrent layer (Bradbury et al. 2017): gates by convolutions, then pooling."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 12, 2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        z, f, o = self.conv(F.pad(x, (1, 0))).chunk(3, dim=1)
        z, f, o = torch.tanh(z), torch.sigmoid(f), torch.sigmoid(o)
        cell = torch.zeros_like(z[..., 0])
        for step in range(x.shape[-1]):
            cell = f[..., step] * cell + (1 - f[..., step]) * z[..., step]
        return self.fc(o[..., -1] * cell)


def keras_qrnn():
    inputs = keras.Input((5, 3))
    gates = layers.Conv1D(12, 2, padding="causal")(inputs)
    z, f, o = ops.split(gates, 3, axis=-1)
    z, f, o = ops.tanh(z), ops.sigmoid(f), ops.sigmoid(o)
    cell = (1 - f[:, 0]) * z[:, 0]
    for step in range(1, 5):
        cell = f[:, step] * cell + (1 - f[:, step]) * z[:, step]
    return keras.Model(inputs, layers.Dense(2)(o[:, -1] * cell))


class ElmanTagger(nn.Module):
    """Stacked `nn.RNN` with relu, and a label for each step."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 4, 2, nonlinearity="relu")
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.rnn(x)[0])


def call_time_first(module, x):
    return module(x.transpose(0, 1)).transpose(0, 1)


def keras_elman_tagger():
    return keras.Sequential(
        [
            keras.Input((6, 3)),
            layers.SimpleRNN(4, "relu", return_sequences=True),
            layers.SimpleRNN(4, "relu", return_sequences=True),
            layers.Dense(2),
        ]
    )


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down = nn.Linear(width, 2, bias=False)
        self.up = nn.Linear(2, width, bias=False)

    def forward(self, x):
        scale = torch.sigmoid(self.up(torch.relu(self.down(x.mean(-1)))))
        return x * scale.unsqueeze(-1)


class MLSTMFCN(nn.Module):
    """Convolutions with squeeze-and-excite beside an LSTM over channels (Karim et al. 2019)."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(9, 4, batch_first=True)
        self.conv = nn.Conv1d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.excite = SqueezeExcite(6)
        self.fc = nn.Linear(10, 2)

    def forward(self, x):  # (batch, features, time): the LSTM's steps are the features
        recurrent = self.lstm(x)[1][0][-1]
        convolved = self.excite(torch.relu(self.norm(self.conv(x)))).mean(-1)
        return self.fc(torch.cat([recurrent, convolved], dim=1))


def keras_mlstm_fcn():
    inputs = keras.Input((9, 3))
    recurrent = LSTM(4)(layers.Permute((2, 1))(inputs))
    x = layers.BatchNormalization(**EPS)(layers.Conv1D(6, 3, padding="same")(inputs))
    x = layers.ReLU()(x)
    scale = layers.Dense(2, "relu", use_bias=False)(layers.GlobalAveragePooling1D()(x))
    scale = layers.Dense(6, "sigmoid", use_bias=False)(scale)
    x = layers.Multiply()([x, layers.Reshape((1, 6))(scale)])
    x = layers.Concatenate()([recurrent, layers.GlobalAveragePooling1D()(x)])
    return keras.Model(inputs, layers.Dense(2)(x))


class UNet1D(nn.Module):
    """One step down by a stride, one up by a transposed convolution, and the skip between."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Conv1d(2, 4, 3, padding=1)
        self.down = nn.Conv1d(4, 6, 2, stride=2)
        self.up = nn.ConvTranspose1d(6, 5, 2, stride=2)
        self.merge = nn.Conv1d(9, 4, 3, padding=1)
        self.out = nn.Conv1d(4, 1, 1)

    def forward(self, x):
        skip = F.leaky_relu(self.inside(x), 0.1)
        x = self.up(F.leaky_relu(self.down(skip), 0.1))
        return self.out(torch.relu(self.merge(torch.cat([x, skip], dim=1))))


def call_u_net(module, x):
    return module(x.movedim(-1, 1)).movedim(1, -1)


def keras_u_net():
    inputs = keras.Input((8, 2))
    skip = layers.LeakyReLU(0.1)(layers.Conv1D(4, 3, padding="same")(inputs))
    x = layers.LeakyReLU(0.1)(layers.Conv1D(6, 2, 2)(skip))
    x = layers.Concatenate()([layers.Conv1DTranspose(5, 2, 2)(x), skip])
    x = layers.Conv1D(4, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv1D(1, 1)(x))


class AttentionPooling(nn.Module):
    """A bidirectional GRU whose steps are weighed by an additive attention."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(8, 5)
        self.score = nn.Linear(5, 1, bias=False)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        steps, _ = self.rnn(x)
        weights = self.score(torch.tanh(self.hidden(steps))).softmax(dim=1)
        return self.fc((weights * steps).sum(1))


def keras_attention_pooling():
    inputs = keras.Input((6, 3))
    steps = Bidirectional(GRU(4, return_sequences=True))(inputs)
    score = layers.Dense(1, use_bias=False)(layers.Dense(5, "tanh")(steps))
    pooled = ops.sum(layers.Softmax(axis=1)(score) * steps, axis=1)
    return keras.Model(inputs, layers.Dense(2)(pooled))


class EEGNet(nn.Module):
    """Temporal, depthwise spatial and separable convolutions (Lawhern et al. 2018)."""

    def __init__(self):
        super().__init__()
        self.temporal = nn.Conv2d(1, 3, (1, 5), padding=(0, 2), bias=False)
        self.norm1 = nn.BatchNorm2d(3)
        self.spatial = nn.Conv2d(3, 6, (4, 1), groups=3, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, (1, 3), padding=(0, 1), groups=6, bias=False)
        self.point = nn.Conv2d(6, 4, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 4, 2)

    def forward(self, x):  # (batch, 1, electrodes, time)
        x = self.norm2(self.spatial(self.norm1(self.temporal(x))))
        x = F.avg_pool2d(F.elu(x), (1, 2))
        x = F.avg_pool2d(F.elu(self.norm3(self.point(self.depth(x)))), (1, 2))
        return self.fc(x.flatten(1))


def keras_eegnet():
    model = keras.Sequential([keras.Input((4, 16, 1))])
    plain = {"use_bias": False}
    for layer in (
        layers.Conv2D(3, (1, 5), padding="same", **plain),
        layers.BatchNormalization(**EPS),
        layers.DepthwiseConv2D((4, 1), depth_multiplier=2, **plain),
        layers.BatchNormalization(**EPS),
        layers.ELU(),
        layers.AveragePooling2D((1, 2)),
        layers.DepthwiseConv2D((1, 3), padding="same", **plain),
        layers.Conv2D(4, 1, **plain),
        layers.BatchNormalization(**EPS),
        layers.ELU(),
        layers.AveragePooling2D((1, 2)),
        layers.Flatten(),
        layers.Dense(2),
    ):
        model.add(layer)
    return model


class Siamese(nn.Module):
    """One encoder for two series, which are told apart by the difference of their codes."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(3, 4, batch_first=True)
        self.fc = nn.Linear(4, 1)

    def forward(self, a, b):
        first, second = (self.encoder(x)[1][-1] for x in (a, b))
        return torch.sigmoid(self.fc((first - second).abs()))


def keras_siamese():
    a, b = keras.Input((6, 3)), keras.Input((6, 3))
    encoder = GRU(4)
    distance = ops.abs(layers.Subtract()([encoder(a), encoder(b)]))
    return keras.Model([a, b], layers.Dense(1, "sigmoid")(distance))


class GatedConvolutions(nn.Module):
    """Gated linear units over time (Dauphin et al. 2017), with group normalisation."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(3, 8, 3, padding=1), nn.GroupNorm(2, 4)
        self.conv2, self.norm2 = nn.Conv1d(4, 12, 3, padding=1), nn.GroupNorm(3, 6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        x = self.norm1(F.glu(self.conv1(x), dim=1))
        x = self.norm2(F.glu(self.conv2(x), dim=1))
        return self.fc(x.amax(-1))


def keras_gated_convolutions():
    inputs = x = keras.Input((7, 3))
    for filters, groups in ((8, 2), (12, 3)):
        x = ops.glu(layers.Conv1D(filters, 3, padding="same")(x), -1)
        x = layers.GroupNormalization(groups, **EPS)(x)
    return keras.Model(inputs, layers.Dense(2)(ops.max(x, axis=1)))


class Mixer(nn.Module):
    """Linear layers over time and over features in turn, as TSMixer (Chen et al. 2023) has them."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm([6, 3])
        self.over_time = nn.Linear(6, 6)
        self.wide, self.narrow = nn.Linear(3, 5), nn.Linear(5, 3)
        self.forecast = nn.Linear(6, 2)

    def forward(self, x):
        x = x + torch.relu(self.over_time(self.norm(x).transpose(1, 2))).transpose(1, 2)
        x = x + self.narrow(F.gelu(self.wide(x)))
        return self.forecast(x.transpose(1, 2)).transpose(1, 2)


def keras_mixer():
    inputs = keras.Input((6, 3))
    swap = layers.Permute((2, 1))
    y = layers.LayerNormalization(axis=[1, 2], name="norm", **EPS)(inputs)
    y = layers.Dense(6, "relu", name="over_time")(swap(y))
    x = layers.Add()([inputs, layers.Permute((2, 1))(y)])
    y = ops.gelu(layers.Dense(5, name="wide")(x), approximate=False)
    x = layers.Add()([x, layers.Dense(3, name="narrow")(y)])
    y = layers.Dense(2, name="forecast")(layers.Permute((2, 1))(x))
    return keras.Model(inputs, layers.Permute((2, 1))(y))


def series(*shapes):
    return [normal(3, *shape, seed=i) for i, shape in enumerate(shapes)]


# The module, its twin, inputs, and where they are not what they are by default, the names that
# belong together and how the module is called.
MODELS = {
    "LSTM classifier": (LSTMClassifier, keras_lstm_classifier, series((7, 3))),
    "packed bidirectional LSTM": (PackedTagger, keras_packed_tagger, [TOKENS]),
    "seq2seq with attention": (
        Seq2SeqAttention, keras_seq2seq_attention, series((6, 3), (5, 2))),
    "WaveNet": (WaveNet, keras_wavenet, series((12, 2)), WAVENET_NAMES, call_u_net),
    "CNN-LSTM": (CNNLSTM, keras_cnn_lstm, series((16, 3)), None, channels_first),
    "GRU-D, input side": (DecayedGRU, keras_decayed_gru, series(*[(6, 3)] * 4)),
    "Transformer encoder": (
        TransformerClassifier, keras_transformer_classifier, series((5, 3)), TRANSFORMER_NAMES),
    "causal Transformer": (
        CausalTransformer, keras_causal_transformer, [TOKENS, PLACES], CAUSAL_NAMES),
    "ResNet": (ResNet1D, keras_resnet1d, series((15, 3)), RESNET_NAMES, channels_first),
    "InceptionTime": (
        InceptionTime, keras_inception_time, series((14, 3)), None, channels_first),
    "LSTM autoencoder": (LSTMAutoencoder, keras_lstm_autoencoder, series((6, 3))),
    "CRNN": (CRNN, keras_crnn, series((8, 12, 1)), None, call_crnn),
    "FCN": (FCN, keras_fcn, series((11, 3)), None, channels_first),
    "QRNN": (QRNN, keras_qrnn, series((5, 3)), None, channels_first),
    "Elman tagger": (ElmanTagger, keras_elman_tagger, series((6, 3)), None, call_time_first),
    "MLSTM-FCN": (MLSTMFCN, keras_mlstm_fcn, series((9, 3)), None, channels_first),
    "U-Net": (UNet1D, keras_u_net, series((8, 2)), None, call_u_net),
    "attention pooling": (AttentionPooling, keras_attention_pooling, series((6, 3))),
    "EEGNet": (EEGNet, keras_eegnet, series((4, 16, 1)), None, channels_first),
    "siamese GRU": (Siamese, keras_siamese, series((6, 3), (6, 3))),
    "gated convolutions": (
        GatedConvolutions, keras_gated_convolutions, series((7, 3)), None, channels_first),
    "mixer": (Mixer, keras_mixer, series((6, 3))),
}  # fmt: skip


def made(name):
    """The module with weights that differ everywhere, its twin, inputs, mapping and call."""
    module, model, inputs, *more = MODELS[name]
    mapping, call = more + [None, None][len(more) :]
    keras.utils.set_random_seed(0)
    return randomise(module()), model(), inputs, mapping, call


def called(module, call):
    return module if call is None else partial(call, module)


@pytest.mark.parametrize("name", MODELS)
def test_the_twin_gives_the_same_and_goes_back(name):
    module, model, inputs, mapping, call = made(name)
    from_torch(module, model, mapping)
    assert_same(model, called(copy.deepcopy(module).double(), call), *inputs)
    back = to_torch(model, randomise(copy.deepcopy(module), seed=1), mapping)
    assert_same(model, called(back.double(), call), *inputs)


@pytest.mark.slow
@needs_gradients
@pytest.mark.parametrize("name", MODELS)
def test_its_layers_and_gradients_are_the_same(name, request):
    if name == "gated convolutions" and keras.backend.backend() == "jax":
        reason = (
            "XLA's fusions on a CPU compute the elements of `max` anew, rounded otherwise: none "
            "then equals the maximum, and JAX divides its gradient by their number"
        )
        request.applymarker(pytest.mark.xfail(raises=DisagreementError, reason=reason))
    module, model, inputs, mapping, call = made(name)
    from_torch(module, model, mapping)
    given = inputs[0] if len(inputs) == 1 else inputs
    report = check_port(module, model, mapping, inputs=given, forward=call)
    report.raise_if_disagrees()


class ConvLSTMCell(nn.Module):
    """Its gates by one convolution over input and state, as PyTorch code has it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2 + 3, 4 * 3, 3, padding=1)


def test_a_layer_that_has_no_counterpart_is_refused_by_name():
    model = keras.Sequential([keras.Input((4, 5, 5, 2)), layers.ConvLSTM2D(3, 3, padding="same")])
    with pytest.raises(PortingError, match=r"ConvLSTM2D"):
        from_torch(ConvLSTMCell(), model)
