"""Writes tests/unit/migration/files/lambdas.json: lambdas as versions of CPython store them.

    python3.8 tools/make_lambda_bytecode.py tests/unit/migration/files/lambdas.json

It adds the running version's code of every lambda in `LAMBDAS`, by its source, in base64, as a
Lambda layer stores it. It needs nothing but the standard library, of CPython 3.6 or later.
"""

import base64
import json
import marshal
import os
import sys

# What a Lambda may be recognised as, and beside it code that differs from it in an instruction, a
# constant or a name, and computes something else.
LAMBDAS = [
    "lambda x: x[:, -1]",
    "lambda x: x[:, -1, :]",
    "lambda x: x[:, -1, :, :]",
    "lambda x: x[:, -2]",
    "lambda x: x[:, 1]",
    "lambda x: x[:, -1:]",
    "lambda x: x[:-1, -1]",
    "lambda x: x[1:, -1]",
    "lambda x: x[:, -1, 1:]",
    "lambda x: x[:, -1, ::2]",
    "lambda x: x[:, -1.0]",
    "lambda x: x[:, True]",
    "lambda x: x[-1]",
    "lambda x: x[-1, :]",
    "lambda x: x[:, :, -1]",
    "lambda x: x[:, -1, None]",
    "lambda x: x[..., -1]",
    "lambda x: x / 255 - 0.5",
    "lambda x: x / 255.0",
    "lambda x: x * 2",
    "lambda x: 2 * x + 1",
    "lambda x: -x",
    "lambda x: x // 255",
    "lambda x: x ** 2",
    "lambda x: x % 2",
    "lambda x: 1 - x",
    "lambda x: 1 / x",
    "lambda x: x / 0",
    "lambda x: x * x",
    "lambda x: x + x",
    "lambda x: x * True",
    "lambda x: +x",
    "lambda x: x * scale",
    "lambda x: K.sum(x, axis=1)",
    "lambda x: K.sum(x, 1)",
    "lambda x: K.sum(x)",
    "lambda x: K.sum(x, None)",
    "lambda x: K.sum(x, axis)",
    "lambda x: K.sum(x, axis=1.0)",
    "lambda x: K.sum(x, dim=1)",
    "lambda x: K.sum(x, 1, axis=1)",
    "lambda x: K.sum(K, axis=1)",
    "lambda x: K.sum(1, axis=1)",
    "lambda x: K.prod(x, axis=1)",
    "lambda x: K.sum.sum(x, axis=1)",
    "lambda x: x.sum(x, axis=1)",
    "lambda x: K(x, axis=1)",
    "lambda x: sum(x, axis=1)",
    "lambda x: np.sum(x, axis=1)",
    "lambda x: K.mean(x, axis=-2, keepdims=True)",
    "lambda x: K.max(x, (1, 2))",
    "lambda x: keras.backend.sum(x, axis=1)",
    "lambda x: tf.reduce_mean(x, axis=1)",
    "lambda x: tf.reduce_mean(x, 1, True)",
    "lambda x: tf.math.reduce_max(x, axis=1)",
    "lambda x: tf.reduce_min(x, axis=1)",
    "lambda x: tf.reduce_mean(x / 255, axis=1)",
    "lambda x: K.expand_dims(x, -1)",
    "lambda x: K.expand_dims(x, axis=2) * 2",
    "lambda x: K.expand_dims(x)",
    "lambda x: tf.expand_dims(x, axis=1)",
    "lambda x: K.squeeze(x, 1)",
    "lambda x: tf.squeeze(x, axis=-1)",
    "lambda x: tf.squeeze(x)",
    "lambda x: K.permute_dimensions(x, (0, 2, 1))",
    "lambda x: tf.transpose(x, perm=(0, 2, 1))",
    "lambda x: tf.transpose(x, (0, 2, y))",
    "lambda x: tf.transpose(x)",
    "lambda x: ops.transpose(x, axes=(0, 2, 1))",
    "lambda x: keras.ops.max(x, axis=1)",
    "lambda x: x if x else x[:, -1]",
    "lambda x: (x, x[:, -1])",
    "lambda x: [x[:, -1]]",
    "lambda x: x[:, -1] or x",
    "lambda x: x",
    "lambda x: 1",
    "lambda x: (lambda: x)()",
    "lambda x: [y for y in x]",
    "lambda x, y: x[:, -1]",
    "lambda *x: x[:, -1]",
    "lambda **x: x[:, -1]",
    "lambda *, x: x[:, -1]",
    "lambda: x[:, -1]",
    "lambda x: (yield x[:, -1])",
    "lambda x: open(x)",
]


def codes():
    """The stored form of each lambda. The names are imported, as in scripts that make models."""
    for source in LAMBDAS:
        module = compile(f"import K, tf, keras, ops, np\nf = {source}", "model.py", "exec")
        (code,) = [c for c in module.co_consts if type(c) is type(module)]
        yield source, base64.b64encode(marshal.dumps(code)).decode()


if __name__ == "__main__":
    path = sys.argv[1]
    stored = {}
    if os.path.exists(path):
        with open(path) as file:
            stored = json.load(file)
    stored[".".join(map(str, sys.version_info[:2]))] = dict(codes())
    with open(path, "w") as file:
        json.dump(dict(sorted(stored.items())), file, indent=0)
        file.write("\n")
