"""Finetuning: one GLUE task, or one's own CSV, without a teacher; it ends in a packed task model."""
