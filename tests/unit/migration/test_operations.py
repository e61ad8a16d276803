"""Lambdas that their bytecode spells out, and operations that a caller names."""

import base64
import importlib.util
import json
import pathlib
import random

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibackend_lstm.migration.bytecode import read_lambda
from multibackend_lstm.migration.operations import as_model, parse, recognise, text

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[2]
STORED = json.loads((FOLDER / "files" / "lambdas.json").read_text())
# What each lambda of tools/make_lambda_bytecode.py computes; the others are left.
SPELLED_OUT = {
    "lambda x: x[:, -1]": "last_step",
    "lambda x: x[:, -1, :]": "last_step",
    "lambda x: x[:, -1, :, :]": "last_step",
    "lambda x: x / 255 - 0.5": "divide(255), subtract(0.5)",
    "lambda x: x / 255.0": "divide(255.0)",
    "lambda x: x * 2": "multiply(2)",
    "lambda x: 2 * x + 1": "multiply(2), add(1)",
    "lambda x: -x": "multiply(-1)",
    "lambda x: K.sum(x, axis=1)": "sum(1)",
    "lambda x: K.sum(x, 1)": "sum(1)",
    "lambda x: K.mean(x, axis=-2, keepdims=True)": "mean(-2, keepdims)",
    "lambda x: K.max(x, (1, 2))": "max(1, 2)",
    "lambda x: keras.backend.sum(x, axis=1)": "sum(1)",
    "lambda x: tf.reduce_mean(x, axis=1)": "mean(1)",
    "lambda x: tf.reduce_mean(x, 1, True)": "mean(1, keepdims)",
    "lambda x: tf.math.reduce_max(x, axis=1)": "max(1)",
    "lambda x: tf.reduce_mean(x / 255, axis=1)": "divide(255), mean(1)",
    "lambda x: K.expand_dims(x, -1)": "expand_dims(-1)",
    "lambda x: K.expand_dims(x, axis=2) * 2": "expand_dims(2), multiply(2)",
    "lambda x: tf.expand_dims(x, axis=1)": "expand_dims(1)",
    "lambda x: K.squeeze(x, 1)": "squeeze(1)",
    "lambda x: tf.squeeze(x, axis=-1)": "squeeze(-1)",
    "lambda x: K.permute_dimensions(x, (0, 2, 1))": "transpose(0, 2, 1)",
    "lambda x: tf.transpose(x, perm=(0, 2, 1))": "transpose(0, 2, 1)",
    "lambda x: ops.transpose(x, axes=(0, 2, 1))": "transpose(0, 2, 1)",
    "lambda x: keras.ops.max(x, axis=1)": "max(1)",
}


def lambda_layer(code, **config):
    """A Lambda as Keras 2 stores it."""
    stored = {"function": [code, None, None], "function_type": "lambda", **config}
    return {"class_name": "Lambda", "config": stored}


def said(code, **config):
    """What is recognised, in words."""
    operations = recognise(lambda_layer(code, **config))
    return None if operations is None else text(operations)


def encoded(content):
    return base64.b64encode(content).decode()


def test_the_file_is_of_every_version_and_lambda():
    assert list(STORED) == sorted(f"3.{minor}" for minor in range(6, 14))
    spec = importlib.util.spec_from_file_location(
        "make_lambda_bytecode", ROOT / "tools" / "make_lambda_bytecode.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for version in STORED.values():
        assert list(version) == module.LAMBDAS
    assert set(SPELLED_OUT) < set(module.LAMBDAS)


@pytest.mark.parametrize("version", STORED)
def test_what_the_bytecode_spells_out(version):
    found = {source: said(code) for source, code in STORED[version].items()}
    assert {source: words for source, words in found.items() if words} == SPELLED_OUT


@pytest.mark.parametrize("version", STORED)
def test_one_changed_byte_is_never_taken_for_the_same_function(version):
    """Every byte of the instructions: their numbers, arguments and cache entries."""
    draw = random.Random(version)
    for source, words in SPELLED_OUT.items():
        content = base64.b64decode(STORED[version][source])
        # The instructions come first, after the numbers of the code object and their own length.
        start = content.index(b"s" if b"s" in content[:30] else b"\xf3") + 5
        end = start + int.from_bytes(content[start - 4 : start], "little")
        assert content[end - 2] in (36, 83)  # RETURN_VALUE
        for place in range(start, end):
            for byte in (content[place] ^ 1, (content[place] + 1) % 256, draw.randrange(256)):
                if byte == content[place]:
                    continue
                changed = content[:place] + bytes([byte]) + content[place + 1 :]
                assert said(encoded(changed)) != words, (source, place - start, byte)


@pytest.mark.parametrize("version", STORED)
def test_bytes_that_are_missing_or_too_many_are_no_function(version):
    content = base64.b64decode(STORED[version]["lambda x: K.sum(x, axis=1)"])
    for length in range(len(content)):
        assert read_lambda(content[:length]) is None
    assert read_lambda(content + b"N") is None


@given(content=st.binary(max_size=200), version=st.sampled_from(sorted(STORED)), data=st.data())
def test_no_bytes_raise(content, version, data):
    read_lambda(content)
    source = data.draw(st.sampled_from(sorted(SPELLED_OUT)))
    whole = base64.b64decode(STORED[version][source])
    place = data.draw(st.integers(0, len(whole)))
    read_lambda(whole[:place] + content + whole[place + len(content) :])


def test_values_nested_deep_or_declared_large_are_no_function():
    head = b"\xe3" + bytes([1, 0, 0, 0]) + bytes(8) + b"\x01\0\0\0\x43\0\0\0"
    assert read_lambda(head + b")\x01" * 2000) is None
    assert read_lambda(head + b"s\xff\xff\xff\x7f") is None
    assert read_lambda(head + b"s\xff\xff\xff\xff") is None
    assert read_lambda(head + b"(\xff\xff\xff\x7f") is None


def test_a_lambda_with_more_than_its_code_is_left():
    code = STORED["3.8"]["lambda x: x[:, -1]"]
    assert said(code) == "last_step"
    assert said(code, arguments={"a": 1}) is None
    assert said(code, mask=[code, None, None]) is None
    assert said(code, function_type="function") is None
    for function in ([code, [1], None], [code, None, [1]], [code], code, [3, None, None], None):
        layer = {"config": {"function": function, "function_type": "lambda"}}
        assert recognise(layer) is None
    assert said("%%%") is None
    stored = {"class_name": "__lambda__", "config": {"code": code, "defaults": None}}
    assert text(recognise({"config": {"function": stored}})) == "last_step"
    stored["config"]["closure"] = [1]
    assert recognise({"config": {"function": stored}}) is None


OPERATIONS = {
    "last_step": lambda x: x[:, -1],
    "scale:0.5,-1": lambda x: 0.5 * x - 1,
    "sum:1": lambda x: x.sum(1),
    "mean:-1": lambda x: x.mean(-1),
    "max:1,2": lambda x: x.max((1, 2)),
    "expand_dims:-1": lambda x: x[..., None],
    "expand_dims:1": lambda x: x[:, None],
    "squeeze:-1": lambda x: x[..., 0],
    "transpose:0,3,1,2": lambda x: x.transpose(0, 3, 1, 2),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_named_operations_compute_what_numpy_does(name, tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 1)).astype("float32")
    model = as_model(parse(name), (None, None, 3, 1), "float32", "layer")
    keras.Sequential([keras.Input((None, 3, 1)), model]).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    found = keras.ops.convert_to_numpy(loaded(x))
    np.testing.assert_allclose(found, OPERATIONS[name](x.astype("float64")), atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        "", "last", "last_step:1", "scale", "scale:1", "scale:1,2,3", "scale:nan,1", "scale:a,b",
        "sum", "sum:", "sum:1.5", "min:1", "expand_dims:1,2", "add:1", "transpose:a", "reshape:1",
    ],
)  # fmt: skip
def test_other_names_are_refused(wrong):
    with pytest.raises(ValueError, match="named by one of last_step, scale:FACTOR,OFFSET"):
        parse(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "sum:0", "sum:3", "sum:-3", "mean:1,1", "max:1,-2", "expand_dims:0", "expand_dims:4",
        "squeeze:1", "squeeze:0", "transpose:1,0,2", "transpose:0,1", "transpose:0,2,-1",
    ],
)  # fmt: skip
def test_the_batch_stays_and_axes_exist(name):
    with pytest.raises(ValueError, match="ax"):
        as_model(parse(name), (None, 4, 3), "float32", "layer")


def test_an_index_of_more_axes_than_there_are_is_refused():
    three = recognise(lambda_layer(STORED["3.8"]["lambda x: x[:, -1, :]"]))
    assert as_model(three, (None, 4, 3), "float32", "layer").output_shape == (None, 3)
    for operations in (three, parse("last_step")):
        with pytest.raises(ValueError, match="axes"):
            as_model(operations, (None, 4) if operations is three else (None,), "float32", "layer")
