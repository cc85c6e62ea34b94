"""bitbert-predict: answers from a packed checkpoint, with numpy alone."""

from typing import Annotated

import typer

from bitbert.errors import run_door
from bitbert.runtime.forward import Prediction, Runtime

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Folder of a packed checkpoint (from bitbert-finetune or bitbert-export).", metavar="MODEL")],
    text: Annotated[str, typer.Argument(help="The text, or the first text of a pair.", metavar="TEXT")],
    second_text: Annotated[str | None, typer.Argument(help="The second text of a pair.", metavar="[SECOND_TEXT]")] = None,
) -> None:
    """Answer one text, or a pair of texts, from packed bits. Neither torch nor transformers is loaded.

    A task model prints its label and probability (a regression model its score); a pretraining checkpoint says
    whether the second text follows the first.

    Example: bitbert-predict runs/sst2/packed "a gripping and moving film"
    """
    runtime = Runtime.load(model)
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
