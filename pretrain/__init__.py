"""Pretraining: MLM + NSP with distillation from a full-precision teacher, through DeepSpeed."""
