"""Data preparation: documents -> sentences -> next-sentence pairs -> token shards."""
