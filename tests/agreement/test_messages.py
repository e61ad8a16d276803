"""Messages between parent and worker."""

import io
import pickle
import struct

import numpy as np
import pytest

from multibackend_lstm.runtimes.messages import receive, send


def test_messages_arrive_as_they_were_sent():
    stream = io.BytesIO()
    arrays = {
        "float": np.random.default_rng(0).normal(size=(2, 3)),
        "int": np.arange(4),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 2), "float32"),
        "scalar": np.array(1.5),
    }
    send(stream, {"do": "run", "nested": [1, {"ä": None}]}, arrays)
    send(stream, {"second": True})
    stream.seek(0)
    header, received = receive(stream)
    assert header == {"do": "run", "nested": [1, {"ä": None}]}
    assert received.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(received[name], array, strict=True)
    assert receive(stream) == ({"second": True}, {})
    with pytest.raises(EOFError):
        receive(stream)


def test_a_message_cut_short_is_an_end():
    stream = io.BytesIO()
    send(stream, {"a": 1}, {"x": np.arange(10)})
    for length in (3, 20, len(stream.getvalue()) - 1):
        with pytest.raises(EOFError):
            receive(io.BytesIO(stream.getvalue()[:length]))


def test_objects_are_neither_sent_nor_loaded():
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        send(io.BytesIO(), {}, {"x": np.array([object()])})
    hostile = io.BytesIO()
    np.savez(hostile, x=np.array([pickle.dumps], dtype=object))
    body = b"{}" + hostile.getvalue()
    stream = io.BytesIO(struct.pack(">QQ", 2, len(hostile.getvalue())) + body)
    with pytest.raises(ValueError, match="allow_pickle"):
        receive(stream)
