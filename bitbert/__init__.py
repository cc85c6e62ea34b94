"""BitBERT: 1-bit foundation models for language understanding.

Importing this package loads nothing heavy: ``bitbert.runtime`` must start without torch. Where transformers is used
too, its Auto classes know BitBERT's checkpoints, training and packed (see :mod:`bitbert.transformers_hook`).
"""

from bitbert.transformers_hook import install as _install

__version__ = "0.1.0"

_install()
