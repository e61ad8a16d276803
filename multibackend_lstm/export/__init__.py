"""Artefacts that run without Keras: `porting.export`, `check_export`.

Read it in this order: `exports.py`, `formats.py`, then what runs in processes of its own:
`worker.py` and `exporters.py` on one backend each, `artefact_worker.py` without Keras.
"""
