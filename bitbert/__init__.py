"""BitBERT: 1-bit foundation models for language understanding.

Importing this package loads nothing heavy: ``bitbert.runtime`` must start without torch.
``import bitbert.model`` registers the torch model classes with transformers.
"""

__version__ = "0.1.0"
