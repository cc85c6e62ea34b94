"""The published pretraining step, written the straightforward way: what bench_pretrain.py measures ours against.

Formulas of BiPFT-B (arXiv 2312.08937) and of BiT's elastic binarizers (arXiv 2205.13016), one operation after the
other: binarized weights and activations are float copies, every binarizer keeps its float input for the backward
pass, the masked-LM head runs at every position, and the teacher runs with dropout and with all of its heads. The
numbers are those of `bitbert.model`; only the work is not saved. For the benchmark alone.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class ElasticSigned(Function):
    """x -> alpha * sign(x), keeping x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        return alpha * torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, alpha = ctx.saved_tensors
        inside = (x >= -alpha).float() * (x <= alpha).float()
        sign = torch.where(x >= 0, 1.0, -1.0)
        return gradient * inside, (gradient * sign).sum().reshape(1) / math.sqrt(x.numel())


class ElasticUnsigned(Function):
    """x -> alpha * clip(round(x / alpha), 0, 1), keeping x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        return alpha * (x / alpha).round().clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, alpha = ctx.saved_tensors
        ratio = x / alpha
        below, above = (ratio < 0).float(), (ratio > 1).float()
        inside = 1 - below - above
        step = above + inside * (ratio.round() - ratio)
        return gradient * inside, (gradient * step).sum().reshape(1) / math.sqrt(x.numel())


def binarized(weight: Tensor, scale: Tensor) -> Tensor:
    """scale * sign(W - mean W), with the identity as gradient."""
    signs = torch.where(weight - weight.mean() >= 0, 1.0, -1.0)
    return (scale * signs).detach() - weight.detach() + weight


class Linear(nn.Linear):
    """A linear layer of floats that hold one bit each."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        nn.init.normal_(self.weight, std=0.02)
        self.move, self.alpha = nn.Parameter(torch.zeros(in_features)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = ElasticSigned.apply(x + self.move, self.alpha)
        return nn.functional.linear(x, binarized(self.weight, self.weight.abs().mean()), self.bias)


class Layer(nn.Module):
    """One encoder layer with rank-1 residual estimators."""

    def __init__(self, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.attention_output = (Linear(hidden, hidden) for _ in range(4))
        self.intermediate, self.output = Linear(hidden, inner), Linear(inner, hidden)
        self.q_p, self.k_p, self.q_m, self.k_m, self.v_p = (nn.Linear(hidden, 1) for _ in range(5))
        self.alphas = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(3))
        self.attention_alpha = nn.Parameter(torch.full((1,), 4 / 128))
        self.attention_norm, self.output_norm = nn.LayerNorm(hidden, eps=1e-12), nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, positions, hidden = x.shape
        projections = (self.query(x), self.key(x), self.value(x))
        split = [y.view(batch, positions, self.heads, -1).transpose(1, 2) for y in projections]
        q, k, v = (ElasticSigned.apply(y, alpha) for y, alpha in zip(split, self.alphas, strict=True))
        q_p, k_p, q_m, k_m = self.q_p(x), self.k_p(x), self.q_m(x), self.k_m(x)
        residual = q_m @ k_p.transpose(1, 2) + q_p @ k_m.transpose(1, 2) + q_p @ k_p.transpose(1, 2)
        scores = q @ k.transpose(-1, -2) + residual.unsqueeze(1).expand(-1, self.heads, -1, -1)
        scores = scores / math.sqrt(q.shape[-1]) + mask
        attended = ElasticUnsigned.apply(self.dropout(torch.softmax(scores, dim=-1)), self.attention_alpha)
        context = attended @ v + attended @ self.v_p(x).unsqueeze(1).expand(-1, self.heads, -1, -1)
        context = context.transpose(1, 2).reshape(batch, positions, hidden)
        x = self.attention_norm(self.dropout(self.attention_output(context)) + x)
        return self.output_norm(self.dropout(self.output(nn.functional.gelu(self.intermediate(x)))) + x)


class PublishedStudent(nn.Module):
    """Binary BERT with both pretraining heads, logits at every position."""

    def __init__(self, *, vocab: int, hidden: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, hidden)
        nn.init.normal_(self.words.weight, std=0.02)
        self.positions, self.types = nn.Embedding(512, hidden), nn.Embedding(2, hidden)
        self.norm, self.head_norm = nn.LayerNorm(hidden, eps=1e-12), nn.LayerNorm(hidden, eps=1e-12)
        self.layers = nn.ModuleList(Layer(hidden, heads, inner) for _ in range(layers))
        self.pooler, self.pooler_norm = Linear(hidden, hidden), nn.LayerNorm(hidden, eps=1e-12)
        self.transform, self.nsp = nn.Linear(hidden, hidden), nn.Linear(hidden, 2)
        self.decoder_bias, self.dropout = nn.Parameter(torch.zeros(vocab)), nn.Dropout(0.1)

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(batch, positions) -> logits at every position, next-sentence logits, L + 1 hidden states."""
        table = binarized(self.words.weight, self.words.weight.abs().mean(dim=1, keepdim=True))
        x = nn.functional.embedding(input_ids, table)
        x = x + self.positions(torch.arange(input_ids.shape[1])) + self.types(torch.zeros_like(input_ids))
        states = [self.dropout(self.norm(x))]
        bias = (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.layers:
            states.append(layer(states[-1], bias))
        first = states[-1][:, 0]
        pooled = torch.tanh(self.pooler_norm(self.pooler(first)) + first)
        transformed = self.head_norm(torch.relu(self.transform(states[-1])))
        return nn.functional.linear(transformed, self.words.weight, self.decoder_bias), self.nsp(pooled), states


def published_loss(student: PublishedStudent, teacher: Any, batch: dict[str, Tensor]) -> Tensor:
    """MLM + NSP + hidden states + NSP logits of the teacher, which computes its own losses too.

    Args:
        teacher: transformers' BertForPreTraining, in training mode as published.
        batch: input_ids, attention_mask, labels (-100 where not masked) and next_sentence_label.
    """
    logits, nsp_logits, states = student(batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        theirs = teacher(**batch, output_hidden_states=True)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    loss = loss + nn.functional.cross_entropy(nsp_logits, batch["next_sentence_label"])
    distances = [nn.functional.mse_loss(a, b.float()) for a, b in zip(states, theirs.hidden_states, strict=True)]
    soft = -(torch.softmax(theirs.seq_relationship_logits, -1) * torch.log_softmax(nsp_logits, -1)).mean()
    return loss + torch.stack(distances).mean() + soft
