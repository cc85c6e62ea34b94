"""A masked-LM head for a teacher that has none, trained on its frozen states.

    logits = LayerNorm(act(h W + b)) E^T + c        W (hidden, hidden), c (vocabulary,)

W, b, the norm and c are learned; E is the teacher's word table and stays as it is, as in BERT, whose decoder is tied to
it: so the folder loads as any BERT, and a student, whose decoder is tied to its own table, starts from the same head.
One process; killed and started again it goes on to the same bits, as pretraining does.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertForPreTraining

from bitbert.distributed import Topology, detect_topology, log
from bitbert.errors import UserError
from bitbert.files import publish_folder, write_json_atomically
from bitbert.memory import give_back_memory_now_and_then
from bitbert.model.precision import products_in
from bitbert.tokenizer import Tokenizer, load_tokenizer
from bitbert.tracking import RunStatus, Tracker, check_mlflow_uri, flatten

from .checkpoint import load_model_weights, newest_checkpoint, remove_unfinished, restore_moments, save_checkpoint
from .config import LossSection
from .data import Batch, BatchMaker
from .head_config import TeacherHeadConfig
from .optim import build_optimizer, set_learning_rate
from .preempt import PreemptedError, Preemption
from .progress import progress_bar
from .run import TRAINING_FILE, open_shards, refuse_long_rows
from .run_folder import CHECKPOINTS, CONFIG_FILE, FINAL, STOP_FILE, claim_folder
from .teacher import Teacher, load_teacher
from .zero import TrainingTensors

_ONE_PROCESS = Topology(0, 1, 0, "127.0.0.1", 0)


class MaskedLMHead(nn.Module):
    """What is learned of the head, by its names below ``cls.predictions`` in transformers' BERT."""

    def __init__(self, config: Any, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.transform = BertForPreTraining(config).cls.predictions.transform
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """Logits (m, vocabulary) of states (m, hidden) with the frozen word table (vocabulary, hidden)."""
        return nn.functional.linear(self.transform(states), table, self.bias)


def train_teacher_head(config: TeacherHeadConfig) -> Path:
    """Train the head from where the run folder stands to its last step; returns the folder of the teacher with it.

    Raises:
        UserError: the config does not fit its data, teacher or run folder, or the loss is not finite.
        PreemptedError: SIGTERM or SIGUSR1 came; a checkpoint is written.
    """
    if detect_topology().world_size > 1:
        raise UserError("a teacher's head is trained in one process; start the command without a launcher")
    preemption = Preemption(Path(config.output) / STOP_FILE)
    check_mlflow_uri(config.tracking.mlflow_uri)
    tokenizer = load_tokenizer(config.tokenizer)
    train, heldout = (
        open_shards(folder, tokenizer, config.data, config.seed) for folder in (config.data.train, config.data.heldout)
    )
    teacher = load_teacher(config.teacher, LossSection(nsp_distillation=0.0), tokenizer, config.precision)
    if "cls.predictions.transform.dense.weight" in teacher.tensors:
        raise UserError(f"teacher {config.teacher!r} has an MLM head already; use it as it is")
    refuse_long_rows(train, teacher)
    refuse_long_rows(heldout, teacher)
    claim_folder(config)
    training = _Training(config, teacher, train, heldout, preemption)
    training.run()
    return _save_teacher(config, tokenizer, teacher, training)


class _Training:
    def __init__(
        self,
        config: TeacherHeadConfig,
        teacher: Teacher,
        train: BatchMaker,
        heldout: BatchMaker,
        preemption: Preemption,
    ) -> None:
        self.config, self.train, self.heldout, self.preemption = config, train, heldout, preemption
        self.folder = Path(config.output)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.head = MaskedLMHead(teacher.config, config.seed).to(self.device)
        self.teacher = teacher.to(self.device)
        self.table = self.teacher.bert.embeddings.word_embeddings.weight
        self.optimizer = build_optimizer(self.head, config.optimizer)
        self.tensors = TrainingTensors(self.head, self.optimizer, _ONE_PROCESS)
        self.step, self.evaluation = 0, dict[str, float]()
        self.evaluated_at: int | None = None
        self.saved_step: int | None = None
        self._resume()

    def run(self) -> None:
        config = self.config
        status: RunStatus = "FAILED"
        tracker = Tracker(
            self.folder,
            mlflow_uri=config.tracking.mlflow_uri,
            experiment=config.tracking.experiment,
            parameters=flatten(config.model_dump(mode="json")),
            resume_step=self.step or -1,
        )
        tracker.add(self.folder / CONFIG_FILE)
        try:
            with progress_bar() as progress:
                task = progress.add_task("teacher head", total=config.steps, completed=self.step)
                while True:
                    if self.step != self.saved_step:
                        if self._due(config.eval_every):
                            self._evaluate(tracker)
                        if self.step and self._due(config.checkpoint_every):
                            self._save()
                    if self.step == config.steps:
                        if self.evaluated_at != self.step:  # cut to end at the step that it stood at
                            self._evaluate(tracker)
                        break
                    self._stop_if_asked()
                    rate, loss = self._train_step()
                    if self.step % config.tracking.log_every == 0 or self.step == config.steps:
                        tracker.log(self.step, {"loss/mlm": loss, "learning_rate": rate})
                        self._say({"loss": loss})
                    progress.update(task, completed=self.step)
            status = "FINISHED"
        except (PreemptedError, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            tracker.close(status)

    def _train_step(self) -> tuple[float, float]:
        section = self.config.optimizer
        rate = self.config.rate_at(self.step)
        set_learning_rate(self.optimizer, rate)
        size = self.config.batch_size
        batch = self.train.batch(self.train.sample_rows(self.step * size, size)).to(self.device)
        loss = nn.functional.cross_entropy(self._logits(batch), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        if not math.isfinite(loss.item()):
            raise UserError(
                f"the loss of step {self.step + 1} is {loss.item()}; lower optimizer.learning_rate "
                f"(it was {section.learning_rate:g}) and choose another output"
            )
        if section.gradient_clipping:
            nn.utils.clip_grad_norm_(self.head.parameters(), section.gradient_clipping)
        self.optimizer.step()
        self.step += 1
        give_back_memory_now_and_then(self.step)
        return rate, loss.item()

    def _logits(self, batch: Batch) -> Tensor:
        states = self.teacher(batch).hidden_states[-1].flatten(0, 1)[batch.masked_positions]
        with products_in(self.config.precision, self.device):
            logits: Tensor = self.head(states, self.table)
        return logits.float()

    def _evaluate(self, tracker: Tracker) -> None:
        self.evaluation, self.evaluated_at = self._heldout_metrics(), self.step
        tracker.log(self.step, self.evaluation)
        self._say(self.evaluation)

    @torch.no_grad()
    def _heldout_metrics(self) -> dict[str, float]:
        """Loss and accuracy at the masked positions of the held-out rows; the masks never change."""
        rows = self.heldout.sample_rows(0, min(self.config.eval_rows, len(self.heldout.reader)))
        loss = right = masked = 0.0
        for start in range(0, len(rows), self.config.batch_size):
            batch = self.heldout.batch(rows[start : start + self.config.batch_size]).to(self.device)
            logits = self._logits(batch)
            loss += nn.functional.cross_entropy(logits, batch.labels, reduction="sum").item()
            right += (logits.argmax(-1) == batch.labels).sum().item()
            masked += len(batch.labels)
        return {"eval/mlm_loss": loss / masked, "eval/mlm_accuracy": right / masked}

    def _resume(self) -> None:
        root = self.folder / CHECKPOINTS
        remove_unfinished(root)
        found = newest_checkpoint(root)
        if found is None:
            return
        if found.state["data"] != self._data():
            raise UserError(f"{str(root)!r} was trained on other shards than {self.config.data.train!r}; use those")
        load_model_weights(found.model_file, self.head)
        restore_moments(found, self.tensors)
        self.step = self.saved_step = found.step
        self.evaluation, self.evaluated_at = found.state["evaluation"], found.state.get("evaluated_at")
        log(f"resumed from {found.folder.name}")

    def _save(self) -> None:
        state = {
            "step": self.step,
            "data": self._data(),
            "evaluation": self.evaluation,
            "evaluated_at": self.evaluated_at,
        }
        save_checkpoint(self.folder / CHECKPOINTS, self.tensors, state, keep=self.config.keep_checkpoints)
        self.saved_step = self.step

    def _stop_if_asked(self) -> None:
        if self.preemption.requested:
            if self.step and self.step != self.saved_step:
                self._save()
            self.preemption.acknowledge()
            raise PreemptedError(f"stopped as asked after step {self.step}; start the same command again to go on")

    def _data(self) -> list[str]:
        return [entry["sha256"] for entry in self.train.reader.files]

    def _due(self, every: int) -> bool:
        return self.step in (0, self.config.steps) or (every > 0 and self.step % every == 0)

    def _say(self, values: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        log(f"step {self.step}/{self.config.steps}  {shown}")


def _save_teacher(config: TeacherHeadConfig, tokenizer: Tokenizer, teacher: Teacher, training: _Training) -> Path:
    """The teacher's own tensors, bit for bit, and the head; heads that it lacks stay absent."""
    folder = training.folder / FINAL
    tensors = {name: each.cpu().contiguous() for name, each in teacher.tensors.items()}
    tensors |= {f"cls.predictions.{name}": each.detach().cpu() for name, each in training.head.state_dict().items()}
    teacher.config.tie_word_embeddings = True
    teacher.config.architectures = [BertForPreTraining.__name__]
    record = {"steps": config.steps, "final_metrics": training.evaluation, "config": config.model_dump(mode="json")}
    with publish_folder(folder, replace=True) as temporary:
        teacher.config.save_pretrained(temporary)
        save_file(tensors, temporary / "model.safetensors", {"format": "pt"})
        tokenizer.save(temporary)
        write_json_atomically(temporary / TRAINING_FILE, record)
    log(f"teacher with its head: {folder}")
    return folder
