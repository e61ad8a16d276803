"""Keras with the options that matter: what a backend runs to prove itself."""

from multibackend_lstm.agreement.suite.running import run_suite

__all__ = ["run_suite"]
