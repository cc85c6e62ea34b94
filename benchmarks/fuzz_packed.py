"""Does any damaged packed checkpoint crash a loader? Fuzzes the C loader under sanitizers, and the Python one.

    python benchmarks/fuzz_packed.py --minutes 10

With clang the C loader is fuzzed with coverage feedback (libFuzzer), with another compiler by the target's own
mutator; both under AddressSanitizer and UndefinedBehaviorSanitizer. The Python loader gets mutated files with
recomputed hashes, so that the mutation is reached; anything but a UserError is a failure.
"""

import argparse
import hashlib
import random
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from bitbert.errors import UserError
from bitbert.packed import CONFIG_FILE, SUMS_FILE, WEIGHTS_FILE
from bitbert.runtime import Runtime

REPOSITORY = Path(__file__).resolve().parent.parent
NATIVE = REPOSITORY / "native"
SEED_FOLDER = REPOSITORY / "tests" / "golden" / "packed-v2"
FLAGS = ["-std=c11", "-g", "-O1", "-ffp-contract=off", "-Wno-psabi", "-pthread"]


def write_seed(path: Path) -> None:
    """One input of the C target: length of the config, config, weights."""
    config, weights = ((SEED_FOLDER / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE))
    path.write_bytes(struct.pack("<I", len(config)) + config + weights)


def fuzz_native(folder: Path, seconds: int, seed: int) -> str:
    """Build and run the C target; returns its last line. Raises CalledProcessError when it found something."""
    corpus = folder / "corpus"
    corpus.mkdir()
    write_seed(corpus / "seed")
    guided = shutil.which("clang") is not None
    sanitizers = "fuzzer,address,undefined" if guided else "address,undefined"
    compiler = ["clang", "-DBITBERT_LIBFUZZER"] if guided else ["cc"]
    sources = [NATIVE / "fuzz" / "fuzz_packed.c", *sorted((NATIVE / "src").glob("*.c"))]
    includes = [f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}"]
    sanitize = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    target = folder / "fuzz"
    command = [*compiler, *FLAGS, *sanitize, *includes, *sources, "-lm", "-o", target]
    subprocess.run(list(map(str, command)), check=True)
    arguments = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=65536", str(corpus)]
    run = [str(target), *(arguments if guided else [str(corpus / "seed"), str(seconds), str(seed)])]
    result = subprocess.run(run, capture_output=True, text=True, check=False, cwd=folder)
    lines = (result.stderr if guided else result.stdout).strip().splitlines()
    if result.returncode:
        raise SystemExit("\n".join([*(result.stdout + result.stderr).splitlines()[-40:], "the C loader failed"]))
    return f"{'libFuzzer' if guided else 'own mutator'}: {lines[-1]}"


def mutate(content: bytes, generator: random.Random) -> bytes:
    """A copy with a few bytes changed, a number replaced, or the end cut off; mostly near the beginning."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        limit = len(changed) if generator.random() < 0.2 else min(len(changed), 12_000)
        at = generator.randrange(limit)
        kind = generator.randrange(4)
        if kind == 0:
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            changed[at] = generator.choice(b'0123456789{}[]",:-')
        elif kind == 2:
            number = generator.choice((b"-1", b"99999999999", b"0", b"1e400", b"null"))
            changed[at : at + len(number)] = number
        elif len(changed) > 1:
            del changed[generator.randrange(1, len(changed)) :]
    return bytes(changed)


def fuzz_python(folder: Path, seconds: int, seed: int) -> str:
    """Load mutated folders for a while; returns what happened."""
    generator = random.Random(seed)
    copy = folder / "packed"
    shutil.copytree(SEED_FOLDER, copy)
    originals = {path.name: path.read_bytes() for path in copy.iterdir()}
    refused = loaded = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name = generator.choice((CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_FILE, SUMS_FILE, "tokenizer.json"))
        for other, content in originals.items():
            (copy / other).write_bytes(mutate(content, generator) if other == name else content)
        if name != SUMS_FILE:
            digests = {other: hashlib.sha256((copy / other).read_bytes()).hexdigest() for other in originals}
            lines = [f"{digest}  {other}\n" for other, digest in sorted(digests.items()) if other != SUMS_FILE]
            (copy / SUMS_FILE).write_text("".join(lines))
        try:
            Runtime.load(copy).encode([[1, 2, 3]])
            loaded += 1
        except UserError as error:
            refused += 1
            if "\n" in str(error).strip():
                raise SystemExit(f"an error of more than one line: {error}") from error
    return f"{refused + loaded} folders: {refused} refused, {loaded} loaded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="half for each loader")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seconds = max(1, round(30 * arguments.minutes))
    with tempfile.TemporaryDirectory() as folder:
        print("Python loader,", fuzz_python(Path(folder), seconds, arguments.seed), flush=True)
        print("C loader,", fuzz_native(Path(folder), seconds, arguments.seed), flush=True)


if __name__ == "__main__":
    main()
