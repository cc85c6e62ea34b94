"""Finetuning: one GLUE task, or one's own CSV, without a teacher; it ends in a packed task model."""

from bitbert.errors import require_packages

require_packages(__name__, "torch", "transformers", "pydantic", "yaml")
