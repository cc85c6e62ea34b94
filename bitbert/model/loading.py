"""Models from elsewhere are data: no code of theirs runs, and what is wrong with one is said in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from bitbert.errors import UserError

# What transformers, safetensors and torch raise over files that are absent or damaged, a config with an impossible
# value, and tensors that do not fit it.
_FAILURES = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


@contextmanager
def loading(what: str, name: str, advice: str) -> Iterator[None]:
    """Within it a model is read, and nothing else is done: every failure is taken for one of the model.

    Args:
        what: kind of the model, for the message; ``name`` is what the user gave, ``advice`` what to do instead.

    Raises:
        UserError: the model cannot be read.
    """
    try:
        yield
    except _FAILURES as error:
        reason = " ".join(str(error).partition("\n")[0].split()) or type(error).__name__
        raise UserError(f"{what} {name!r} cannot be loaded: {reason}; {advice}") from error


def refuse_other_types(what: str, name: str, path: str) -> None:
    """Check from config.json alone that ``path``, a folder or Hugging Face id, is a BERT.

    transformers' AutoConfig would offer to run the Python files of a model that it does not know.

    Raises:
        UserError: it says that it is of another type.
    """
    model_type = PreTrainedConfig.get_config_dict(path)[0].get("model_type", "bert")
    if model_type != "bert":
        raise UserError(f"{what} {name!r} is of type {model_type!r}, wanted 'bert'; choose a BERT checkpoint")
