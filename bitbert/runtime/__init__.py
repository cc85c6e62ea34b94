"""Answers from packed checkpoints by multiplying bits; torch and transformers are never imported here."""

from bitbert.runtime.forward import Encoding, Prediction, Runtime

__all__ = ["Encoding", "Prediction", "Runtime"]
