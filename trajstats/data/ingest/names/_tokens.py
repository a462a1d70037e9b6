"""Names of checkpoints as words and numbers: what each number stands for, by the word before it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

PATTERN = "([0-9.]+[kKmMgGbBtT]?)"

UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
STEP_WORDS = frozenset(
    [
        "step",
        "steps",
        "globalstep",
        "trainstep",
        "iter",
        "iters",
        "iteration",
        "iterations",
        "itr",
        "it",
        "its",
        "update",
        "updates",
        "ba",
        "batch",
        "batches",
    ]
)
EPOCH_WORDS = frozenset(["epoch", "epochs", "ep", "e"])
GENERIC_WORDS = frozenset(
    [
        "checkpoint",
        "checkpoints",
        "ckpt",
        "chkpt",
        "cp",
        "model",
        "weights",
        "weight",
        "params",
        "state",
        "snapshot",
        "save",
    ]
)
# Numbers after these words are never steps: sizes of the data seen, scores, settings, and which of several runs it is.
OTHER_WORDS = frozenset(
    [
        "tokens",
        "token",
        "tok",
        "samples",
        "sample",
        "examples",
        "images",
        "seen",
        "loss",
        "acc",
        "accuracy",
        "val",
        "valid",
        "score",
        "psnr",
        "ssim",
        "fid",
        "auc",
        "map",
        "iou",
        "miou",
        "bleu",
        "wer",
        "cer",
        "ppl",
        "perplexity",
        "error",
        "err",
        "mse",
        "mae",
        "rmse",
        "top",
        "dice",
        "reward",
        "return",
        "kl",
        "bpc",
        "metric",
        "lr",
        "wd",
        "bs",
        "bsz",
        "batchsize",
        "dropout",
        "temp",
        "alpha",
        "beta",
        "gamma",
        "momentum",
        "seed",
        "run",
        "fold",
        "version",
        "v",
        "rank",
        "replica",
        "trial",
        "exp",
        "experiment",
        "job",
        "id",
        "stage",
        "phase",
        "part",
        "shard",
        "tp",
        "pp",
        "mp",
        "dp",
        "gpu",
        "node",
        "worker",
        "split",
        "cv",
        "ensemble",
        "member",
        "layer",
        "layers",
        "dim",
        "width",
        "depth",
        "heads",
        "commit",
        "sha",
        "rev",
        "date",
        "time",
    ]
)
_SUFFIX = re.compile(
    r"(?:-?[0-9]+-of-[0-9]+|\.(?:h5|hdf5|weights\.h5|safetensors\.index\.json|[a-z_]{1,12}))$", re.IGNORECASE
)
_CLOCK = r"[0-9]{2}[-:._h]?[0-9]{2}(?:[-:._m]?[0-9]{2}(?:[.,][0-9]+)?)?Z?"
_DAY = r"(?:19|20)[0-9]{2}[-_.][0-9]{2}[-_.][0-9]{2}|[0-9]{2}[-.][0-9]{2}[-.](?:19|20)[0-9]{2}"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[0-9]{2}"
_NEVER = re.compile(  # hashes, dates and times, versions
    r"(?<![0-9a-z])(?P<hash>[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{7,64})(?![0-9a-z])"
    rf"|(?<![0-9a-z])(?:(?:{_DAY})(?:[T_ -]{_CLOCK})?|(?:19|20)[0-9]{{6}}[-_T]{_CLOCK}|{_MONTH}[-_]{_CLOCK})(?![0-9])"
    r"|(?<![0-9])[0-9]+(?:\.[0-9]+){2,}",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,2}(?![0-9a-z]))?(?:[kmgbt](?![a-z0-9]))?)(?P<tail>[a-z]*)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Token:
    """A number, date or hash in a name."""

    kind: str  # "step", "epoch", "number", or "" where it is never a step
    word: str  # the word it belongs to; empty if none
    after: bool  # whether the word follows it
    value: int | None
    tail: str  # letters glued to its end
    where: str  # pattern that finds it
    shown: str = ""  # the name with the number in brackets


def read_number(text: str) -> int | None:
    """Read a whole number with an exponent or a unit of thousands: ``1e5``, ``500k``, ``1.5M``; None if it is not."""
    text = text.strip().lower()
    unit = UNITS.get(text[-1:], 1)
    try:
        value = Decimal(text[:-1] if unit > 1 else text) * unit
    except InvalidOperation:
        return None
    if not value.is_finite() or abs(value) >= 2**63 or value != value.to_integral_value():
        return None
    return int(value)


def _tokens(name: str) -> list[_Token]:
    """Cut a name into its numbers, dates and hashes, from the outermost folder to the end."""
    found = []
    for folder in name.replace("\\", "/").split("/"):
        part = folder
        for _ in range(3):
            part = _SUFFIX.sub("", part)
        position = 0
        while (number := _NUMBER.search(part, position)) is not None:
            never = _NEVER.search(part, position)
            while never is not None and never["hash"] and not _is_hash(never["hash"]):
                never = _NEVER.search(part, never.end())
            text = part[position : (never if never and never.start() <= number.start() else number).start()]
            word = re.search(r"([A-Za-z]+)[-_=.: ]*$", text)
            if never is not None and never.start() <= number.start():
                found.append(_Token("", word[1].lower() if word else "", False, None, "", ""))
                position = never.end()
            else:
                found.append(_number(part, position, number, word[1] if word else ""))
                position = number.end("number")
    return found


def _number(part: str, position: int, match: re.Match[str], word: str) -> _Token:
    """Describe one number of a name: its value, and the word before or after it."""
    value, tail = read_number(match["number"]), match["tail"]
    later = re.match(r"[-_ ]?([A-Za-z]+)(?![A-Za-z0-9]|[-_=. ]*[0-9])", part[match.end("number") :])
    after = _kind(word) == "number" and later is not None and _kind(later[1]) in {"step", "epoch"}
    if after and later is not None:
        word, tail = later[1], ""
        where = f"{PATTERN}[-_ ]?{word}"
    elif word:
        where = f"{word}[-_=.: ]*{PATTERN}"
    else:
        where = re.sub(r"[0-9]+(?:\\\.[0-9]+)?", "[0-9.]+", re.escape(part[: match.start()])) + PATTERN
    unit = match["number"][-1] if match["number"][-1].lower() in UNITS else ""
    shown = f"{part[: match.start()]}({match['number']}){part[match.end('number') :]}"
    return _Token(_kind(word), word.lower(), after, value, tail or unit, where, shown)


def _kind(word: str) -> str:
    """Say what a number after a word is: a step, an epoch, some number, or (empty) never a step."""
    word = word.lower()
    if word in STEP_WORDS:
        return "step"
    if word in EPOCH_WORDS:
        return "epoch"
    return "" if word in OTHER_WORDS else "number"


def _is_hash(word: str) -> bool:
    """Check whether a word of hexadecimal digits is a hash: letters among the digits, not one word and one number."""
    if word.isdigit() or re.fullmatch(r"[A-Za-z]+[0-9]*", word):
        return False
    return re.fullmatch(r"[0-9]+[kKmMgGtTB]", word) is None
