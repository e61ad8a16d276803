"""Weights of `torch.nn` modules: `porting.from_torch`, `to_torch`, `check_port`.

Read it in this order: `conversion.py`, `state_dict.py`, `graph.py` and `axes.py` (what the Keras
model looks like from PyTorch), `rules/` (one rule a kind of layer: `__init__.py`, `base.py`, then
one file a family) and `weights.py`, `matching.py`, then `checking.py` and `running.py`.
"""
