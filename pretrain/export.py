"""bitbert-export: a training run -> a packed checkpoint, proven equal to torch before it is published."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from bitbert.errors import UserError, run_door
from bitbert.files import read_json_object
from bitbert.model import BitBertForPreTraining
from bitbert.model.export import pack_model
from bitbert.model.loading import loading
from bitbert.model.verify import verify_packed
from bitbert.packed import checkpoint_bytes, save_packed
from bitbert.tokenizer import load_tokenizer

from .run import TRAINING_FILE
from .run_folder import FINAL

_RECORDED = ("max_length", "steps", "final_metrics", "config")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished bitbert-pretrain run.", metavar="RUN_DIR")],
    out_dir: Annotated[Path, typer.Argument(help="Folder to create.", metavar="OUT_DIR")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace OUT_DIR where it exists.")] = False,
) -> None:
    """Pack a pretrained model: one bit a weight, in the format of docs/format.md.

    The encoder and its next-sentence head are packed; the masked-LM head stays with the run. Before anything is
    published the packed model's answers are compared with torch's, in float64 and in float32.

    Example: bitbert-export runs/demo/pretrain runs/demo/packed
    """
    report = export_run(run_dir, out_dir, replace=replace)
    typer.echo(f"{out_dir}: {report['bytes']:,} bytes; largest difference to torch {report['max_abs_difference']:.1e}")


def export_run(run_dir: Path, out_dir: Path, *, replace: bool = False) -> dict[str, Any]:
    """Pack ``run_dir``'s final model into ``out_dir`` and return bytes and the measured difference.

    Raises:
        UserError: the run is not finished, ``out_dir`` exists, or the packed model does not agree with torch.
    """
    final = run_dir / FINAL
    if not final.is_dir():
        raise UserError(
            f"{str(run_dir)!r} has no finished model (no {FINAL}/); give a run folder whose training has ended, "
            "or start bitbert-pretrain again to finish it"
        )
    if out_dir.exists() and not replace:
        raise UserError(f"output {str(out_dir)!r} already exists; choose another folder, or pass --replace")
    training = read_json_object(final / TRAINING_FILE, "training record", _RECORDED)
    with loading("model", str(final), "remove it and start bitbert-pretrain again, which writes it anew"):
        model = BitBertForPreTraining.from_pretrained(final, dtype=torch.float32)
    packed = pack_model(model, load_tokenizer(str(final)), max_length=training["max_length"])
    difference = verify_packed(packed, model)
    save_packed(out_dir, packed, _card(training, packed.tensors, difference), replace=replace)
    return {"bytes": checkpoint_bytes(out_dir), "max_abs_difference": difference}


def _card(training: dict[str, Any], tensors: dict[str, np.ndarray], difference: float) -> str:
    config, metrics = training["config"], training["final_metrics"]
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    rows = "\n".join(f"| {name.removeprefix('eval/')} | {value:.4f} |" for name, value in metrics.items())
    return f"""# A packed 1-bit BERT

Made by `bitbert-export`. Method `{config["model"]["method"]}`, {training["steps"]} steps of
{config["global_batch_size"]} sequences of at most {training["max_length"]} tokens, distilled from the full-precision
teacher `{config["teacher"]}`. {num_bytes:,} bytes of tensors. Largest difference of its logits to torch's:
{difference:.1e}.

| held-out metric | value |
| --- | --- |
{rows}

Finetune it with `bitbert-finetune THIS_FOLDER --task sst2 --glue-dir DIR --output OUT`. The licences of the corpus and
of the teacher's weights apply to what was learnt from them; name them where you pass this checkpoint on.
"""


def main() -> None:
    run_door(app)


if __name__ == "__main__":
    main()
