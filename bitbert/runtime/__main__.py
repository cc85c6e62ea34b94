"""bitbert-predict: answers from a packed checkpoint, with neither torch nor transformers."""

from pathlib import Path
from typing import Annotated

import typer

from bitbert.errors import UserError, run_door
from bitbert.runtime.forward import Prediction, Runtime
from bitbert.runtime.info import describe_checkpoint
from bitbert.runtime.streaming import predict_file

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
_MODEL_HELP = "Folder of a packed checkpoint (from bitbert-finetune or bitbert-export), or a released one's name."
_INPUT_HELP = "File with a text a line, or two separated by a tab."
_OUTPUT_HELP = "File of JSON lines for the answers to --input; standard output without it."


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP, metavar="MODEL")],
    text: Annotated[str | None, typer.Argument(help="The text, or the first text of a pair.", metavar="[TEXT]")] = None,
    second_text: Annotated[
        str | None, typer.Argument(help="The second text of a pair.", metavar="[SECOND_TEXT]")
    ] = None,
    input_file: Annotated[Path | None, typer.Option("--input", help=_INPUT_HELP)] = None,
    output_file: Annotated[Path | None, typer.Option("--output", help=_OUTPUT_HELP)] = None,
    info: Annotated[bool, typer.Option("--info", help="Print what the checkpoint is, and leave.")] = False,
    threads: Annotated[int, typer.Option("--threads", help="Threads; answers are the same for any number.")] = 1,
) -> None:
    """Answer a text, a pair of texts or a file of them from packed bits, without torch or transformers.

    A task model prints its label and probability (a regression model its score); a pretraining checkpoint
    says whether the second text follows the first. The environment variable BITBERT_ISA forces an instruction set.

    Example: bitbert-predict bitbert-l6-h384-sst2 "a gripping and moving film"
    """
    if sum((info, text is not None, input_file is not None)) != 1:
        raise UserError("wanted one of a TEXT, --input FILE or --info; see bitbert-predict --help")
    if output_file is not None and input_file is None:
        raise UserError("--output goes with --input; a single TEXT is answered on standard output")
    if info:
        for name, value in describe_checkpoint(model):
            typer.echo(f"{name:<20} {value}")
        return
    runtime = Runtime.load(model, num_threads=threads)
    if input_file is not None:
        predict_file(runtime, input_file, output_file)
    elif text is not None:
        (prediction,) = runtime.classify([text if second_text is None else (text, second_text)])
        typer.echo(describe(prediction))


def describe(prediction: Prediction) -> str:
    """One line: label, probability or score, logits."""
    logits = ", ".join(f"{value:.4f}" for value in prediction.logits)
    if prediction.label is None:
        return f"score {prediction.score:.4f}"
    return f"{prediction.label}  probability {prediction.score:.4f}  logits [{logits}]"


def main() -> None:
    run_door(app)


if __name__ == "__main__":
    main()
