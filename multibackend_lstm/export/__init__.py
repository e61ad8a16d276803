"""Artefacts that run without Keras: `porting.export`, `check_export`.

Read it in this order: `exports.py`, `formats.py`, then what runs in a process of its own on one
backend: `export_runtime.py` and `exporters.py`. The artefact is a target of `agreement/`, which
judges it.
"""
