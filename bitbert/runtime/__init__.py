"""Answers from packed checkpoints with numpy and bits; neither torch nor transformers is ever imported here."""

from bitbert.runtime.forward import Prediction, Runtime

__all__ = ["Prediction", "Runtime"]
