"""Weights of `torch.nn` modules: `porting.from_torch`, `to_torch`, `check_port`.

Read it in this order: `conversion.py`, `state_dict.py`, `graph.py` and `axes.py` (what the Keras
model looks like from PyTorch), `modules.py` and `weights.py` (one rule a kind of layer),
`matching.py`, then `checking.py`, `twins.py` and `running.py`.
"""
