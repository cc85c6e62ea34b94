"""Pretraining: MLM + NSP with distillation from a full-precision teacher, through DeepSpeed."""

from bitbert.errors import require_packages

require_packages(__name__, "torch", "deepspeed", "transformers", "pyarrow", "pydantic", "yaml")
