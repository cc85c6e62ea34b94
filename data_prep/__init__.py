"""Data preparation: documents -> sentences -> next-sentence pairs -> token shards."""

from bitbert.errors import require_packages

require_packages(__name__, "pyarrow", "pydantic", "sentencex", "yaml")
