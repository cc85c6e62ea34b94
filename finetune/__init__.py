"""Finetuning: GLUE, or one's own data, without a teacher; it ends in packed task models and a table."""

from bitbert.errors import require_packages

require_packages(__name__, "torch", "transformers", "pydantic", "yaml")
