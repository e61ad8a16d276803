"""Old model files: `porting.migrate` and `multibackend-lstm migrate`.

Read it in this order: `migration.py`, `model_files.py` (the file as plain data, nothing of it
run), `configs.py` (what Keras 3 names otherwise), `cudnn.py`, `resolution.py` (the model, layer by
layer), `bytecode.py` and `operations.py` (stored functions that their bytecode spells out),
`lambdas.py` (what shapes prove of the others), `stored_weights.py`, then `verification.py`,
which has the old file run as a target of a comparison.
"""
