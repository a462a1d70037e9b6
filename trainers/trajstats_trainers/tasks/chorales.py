"""Bach's four-part chorales as binary chord sequences, read from music21's corpus once, then from an array file.

One row per sixteenth note, one column per pitch from C2 to A5 (46 pitches; every one occurs): 1 where the pitch sounds.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from trajstats.errors import ArgumentError, SchemaError, optional_package, unknown_name_message
from trajstats_trainers.tasks.digits import Task

PER_QUARTER = 4
LOWEST, HIGHEST = 36, 81  # MIDI numbers of C2 and A5
N_PITCHES = HIGHEST - LOWEST + 1
N_VOICES = 4
CACHE_VARIABLE = "TRAJSTATS_CACHE"
FORMAT = 1


def bach_chorales(
    *, n_chorales: int | None = None, length: int = 32, part: str = "train", cache: str | Path | None = None
) -> Task:
    r"""Load Bach's four-part chorales from music21's corpus, to predict the next chord from those before.

    Chords are binary vectors over 46 pitches, one per sixteenth note; see `piano_roll` for ties,
    rests and pickups. Of the chorales in the order of Riemenschneider's collection every fifth is for validation. Each
    is cut into segments of `length` predictions; the remainder at its end is dropped.

    Parameters
    ----------
    n_chorales : int, optional
        Chorales of the training split to use, from the first on; all if not given.
    length : int
        Time steps of a segment.
    part : {"train", "validation"}
        Which segments. Both are standardised by mean and standard deviation of each pitch over the training chorales
        used; a pitch that is silent in all of them is 0.
    cache : path, optional
        Folder of the array file, see `trajstats_trainers.tasks.chorales.chorale_rolls`.

    Returns
    -------
    Task
        Inputs (n, length, 46); targets (n, length, 46), int32, -1 and 1: the chord one step later.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    UnsupportedError
        If music21 is not installed.

    Examples
    --------
    >>> bach_chorales(n_chorales=5, length=30).inputs.shape  # doctest: +SKIP
    (28, 30, 46)
    """
    if part not in ("train", "validation"):
        raise ArgumentError(unknown_name_message("part", part, ("train", "validation")))
    rolls = list(chorale_rolls(cache).values())
    training = [roll for k, roll in enumerate(rolls) if k % 5 != 4]
    if n_chorales is not None and not 1 <= n_chorales <= len(training):
        msg = f"n_chorales={n_chorales}: give between 1 and {len(training)}, the chorales of the training split"
        raise ArgumentError(msg)
    training = training[:n_chorales]
    if not 1 <= length < min(map(len, training)):
        msg = f"length={length}: give between 1 and {min(map(len, training)) - 1}, one less than the shortest chorale"
        raise ArgumentError(msg)
    rows = np.concatenate(training)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    segments = cut(training if part == "train" else rolls[4::5], length)
    return Task(
        name=f"chorales-{part}-{len(training)}x{length}",
        inputs=((segments[:, :-1] - mean) * scale).astype(np.float32),
        targets=2 * segments[:, 1:].astype(np.int32) - 1,
        provenance=(
            f"{part} segments of {length} sixteenths; {len(training)} of {len(rolls) - len(rolls[4::5])} training "
            f"chorales (every fifth of {len(rolls)} is for validation) by J. S. Bach from music21's corpus, pitches "
            f"MIDI {LOWEST} to {HIGHEST}, standardised by the training chorales"
        ),
    )


def piano_roll(score: Any) -> np.ndarray:
    """Sample which pitches sound, at every sixteenth note.

    Row k is the instant k/4 quarter notes after the start: a pitch sounds there if it began then or before and ends
    later. So a held or tied note stays on, a note struck again is not told from one held on, a unison of two voices is
    one pitch, and what lies between two instants (grace notes, off-beat 32nds) is not seen. Rests are rows of zeros,
    left out after the last note. A pickup bar is the first rows, without padding; repeats are not played twice,
    fermatas not lengthened; nothing is transposed.

    Parameters
    ----------
    score : music21.stream.Stream
        A score; all its parts are merged.

    Returns
    -------
    ndarray of uint8, (n_steps, 46)
        Column j is MIDI pitch 36 + j.

    Raises
    ------
    ArgumentError
        If a pitch is outside C2 to A5, or there is no note.

    Examples
    --------
    >>> from music21 import converter
    >>> piano_roll(converter.parse("tinyNotation: c4 d8 r8"))[:, 24:27].tolist()
    [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
    """
    flat = score.flatten()
    if not flat.notes:
        msg = f"no note in {score}"
        raise ArgumentError(msg)
    roll = np.zeros((ceil(flat.highestTime * PER_QUARTER), N_PITCHES), dtype=np.uint8)
    for sound in flat.notes:
        first = ceil(sound.offset * PER_QUARTER)
        stop = ceil((sound.offset + sound.quarterLength) * PER_QUARTER)
        for pitch in sound.pitches:
            if not LOWEST <= pitch.midi <= HIGHEST:
                msg = f"pitch {pitch.nameWithOctave} (MIDI {pitch.midi}) is outside C2 to A5 ({LOWEST} to {HIGHEST})"
                raise ArgumentError(msg)
            roll[first:stop, pitch.midi - LOWEST] = 1
    return roll[: len(roll) - int(np.argmax(roll[::-1].any(axis=1)))]


def chorale_rolls(cache: str | Path | None = None) -> dict[str, np.ndarray]:
    """Read all four-part chorales of music21's corpus.

    In the order of Riemenschneider's collection (371 numbers). Chorales with more parts (instruments beside the voices)
    are left out, and a setting that stands there twice, note for note, counts once: 329 are left.

    Parameters
    ----------
    cache : path, optional
        Folder of the array file; the environment variable ``TRAJSTATS_CACHE`` if not given, else the user's cache
        folder. The first call parses the corpus (about twenty seconds) and writes it, later calls read it.

    Returns
    -------
    dict name -> ndarray of uint8, (n_steps, 46)

    Raises
    ------
    UnsupportedError
        If music21 is not installed.
    SchemaError
        If the array file is damaged.
    """
    music21 = optional_package("music21", "the corpus of chorales", "trajstats[demo]")
    path = cache_folder(cache) / f"bach-chorales-v{FORMAT}-music21-{music21.VERSION_STR}.npz"
    if path.exists():
        return _read(path)
    rolls: dict[str, np.ndarray] = {}
    seen: set[bytes] = set()
    listed = list(music21.corpus.chorales.Iterator(returnType="filename"))
    for name in tqdm(listed, desc="reading chorales (once)", unit="chorale"):
        # From the source: music21 would otherwise unpickle what lies in the shared folder for temporary files.
        score = music21.corpus.parse(str(name), forceSource=True)
        if len(score.parts) == N_VOICES:
            roll = piano_roll(score)
            # The same notes twice could end in training and in validation.
            if roll.tobytes() not in seen:
                rolls[str(name).removeprefix("bach/")] = roll
            seen.add(roll.tobytes())
    _write(path, rolls)
    return rolls


def cache_folder(given: str | Path | None = None) -> Path:
    """Find the folder for array files that are made once.

    Parameters
    ----------
    given : path, optional
        A folder of your choice.

    Returns
    -------
    Path
        `given`, else the environment variable ``TRAJSTATS_CACHE``, else ``trajstats`` in ``XDG_CACHE_HOME`` or
        ``~/.cache``.
    """
    if given is not None:
        return Path(given)
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trajstats"


def _write(path: Path, rolls: dict[str, np.ndarray]) -> None:
    names = np.array(list(rolls))
    stops = np.cumsum([len(roll) for roll in rolls.values()])
    notes = np.concatenate(list(rolls.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".npz.part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, names=names, stops=stops, notes=np.packbits(notes, axis=1), sha256=_digest(notes))
        # Whole or not at all, also if two processes write at once.
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: np.load leaves a damaged file open.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            names, stops, packed, digest = file["names"], file["stops"], file["notes"], str(file["sha256"])
        notes = np.unpackbits(packed, axis=1, count=N_PITCHES)
        if _digest(notes) != digest or len(names) != len(stops) or stops[-1] != len(notes):
            msg = "its contents do not have their checksum"
            raise ValueError(msg)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        msg = f"{path} is damaged ({error}); delete it, and it is made again"
        raise SchemaError(msg) from error
    return dict(zip(names.tolist(), np.split(notes, stops[:-1]), strict=True))


def _digest(notes: np.ndarray) -> str:
    return hashlib.sha256(notes.tobytes()).hexdigest()


def cut(rolls: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Cut sequences into segments that a next-pattern predictor can be trained on.

    Parameters
    ----------
    rolls : sequence of ndarray, (n_steps, n)
        Sequences.
    length : int
        Predictions per segment.

    Returns
    -------
    ndarray, (n_segments, length + 1, n)
        Neighbouring segments share one row: the target of the last step is the input of the next segment. What is left
        over at the end of a sequence is dropped.

    Examples
    --------
    >>> cut([np.arange(8)[:, None]], length=3)[..., 0].tolist()
    [[0, 1, 2, 3], [3, 4, 5, 6]]
    """
    parts = [roll[k : k + length + 1] for roll in rolls for k in range(0, len(roll) - length, length)]
    return np.stack(parts) if parts else np.zeros((0, length + 1, rolls[0].shape[1]), dtype=rolls[0].dtype)
