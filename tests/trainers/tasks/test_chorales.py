"""Chorales: a hand-made score with a known grid, the corpus against a reader of its XML, and the array file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
import zipfile
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from music21 import corpus, note, stream, tie
from trajstats_trainers.tasks import chorales
from trajstats_trainers.tasks.chorales import LOWEST, N_PITCHES, bach_chorales, chorale_rolls, cut, piano_roll

from trajstats.errors import ArgumentError, SchemaError

# Five to train on, one for validation; then a setting of nine parts, one that stands twice in the list under two names,
# and one under the same name.
LISTED = [f"bach/bwv{n}" for n in ("269", "347", "153.1", "86.6", "267", "194.6", "41.6", "274", "62.6", "269")]


@pytest.fixture
def short_list(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus.chorales, "Iterator", lambda **_: iter(LISTED))
    monkeypatch.setenv("TRAJSTATS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def a_note(name, quarters, tied=None):
    made = note.Note(name, quarterLength=quarters)
    if tied:
        made.tie = tie.Tie(tied)
    return made


def test_known_grid():
    upper, lower = stream.Part(), stream.Part()
    # A pickup of one eighth; C5 tied over the bar line; an off-beat 32nd, which no instant sees; D5 struck twice;
    # triplet eighths, of which two instants see the first and one each of the others.
    upper.append([a_note("E5", 0.5), a_note("C5", 0.5, "start"), a_note("C5", 0.5, "stop")])
    upper.append(
        [
            a_note("D5", 0.125),
            a_note("F5", 0.125),
            a_note("D5", 0.25),
            a_note("D5", 0.25),
            note.Rest(quarterLength=0.25),
        ]
    )
    upper.append([a_note(name, Fraction(1, 3)) for name in ("A4", "B4", "C5")])
    # A unison with the upper part's C5, then silence.
    lower.append([note.Rest(quarterLength=0.5), a_note("C5", 1.0), note.Rest(quarterLength=2.0)])
    roll = piano_roll(stream.Score([upper, lower]))
    sounding = [[int(j) + LOWEST for j in np.flatnonzero(row)] for row in roll]
    expected = [[76], [76], [72], [72], [72], [72], [74], [74], [74], [], [69], [69], [71], [72]]
    assert roll.dtype == np.uint8
    assert roll.shape == (len(expected), N_PITCHES)
    assert sounding == expected


@pytest.mark.parametrize("name", ["B1", "B-5"])
def test_pitches_out_of_range_are_told(name):
    part = stream.Part([a_note(name, 1.0)])
    with pytest.raises(ArgumentError, match="C2 to A5"):
        piano_roll(stream.Score([part]))


def test_silence_is_told():
    with pytest.raises(ArgumentError, match="no note"):
        piano_roll(stream.Score([stream.Part([note.Rest(quarterLength=1.0)])]))


def source(name):
    # Some works are there in several formats: corpus.parse takes the first.
    found = corpus.getWork(f"bach/{name}")
    return found[0] if isinstance(found, list) else found


def roll_from_xml(path):
    """Read the grid from the compressed MusicXML alone, without music21's model of a score."""
    with zipfile.ZipFile(path) as archive:
        contents = ET.fromstring(archive.read("META-INF/container.xml"))
        root = ET.fromstring(archive.read(next(contents.iter("rootfile")).attrib["full-path"]))
    sounds, end = [], Fraction(0)
    for part in root.findall("part"):
        start_of_measure, divisions = Fraction(0), 1
        for measure in part.findall("measure"):
            now = longest = start_of_measure
            onset = now
            for element in measure:
                divisions = int(element.findtext("divisions", str(divisions)))
                length = Fraction(element.findtext("duration", "0")) / divisions
                if element.tag == "backup":
                    now -= length
                elif element.tag == "forward":
                    now += length
                elif element.tag == "note":
                    if element.find("chord") is None:
                        onset, now = now, now + length
                    pitch = element.find("pitch")
                    if pitch is not None and length:
                        step = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}[pitch.findtext("step")]
                        midi = 12 * (int(pitch.findtext("octave")) + 1) + step + int(pitch.findtext("alter", "0"))
                        sounds.append((onset, onset + length, midi))
                longest = max(longest, now)
            start_of_measure = longest
        end = max(end, start_of_measure)
    roll = np.zeros((ceil(end * 4), N_PITCHES), dtype=np.uint8)
    for first, stop, midi in sounds:
        roll[ceil(first * 4) : ceil(stop * 4), midi - LOWEST] = 1
    return roll[: np.flatnonzero(roll.any(axis=1))[-1] + 1]


def test_some_chorales_equal_their_xml(short_list):
    rolls = chorale_rolls()
    assert list(rolls) == ["bwv269", "bwv347", "bwv153.1", "bwv86.6", "bwv267", "bwv194.6", "bwv274"]
    for name, roll in rolls.items():
        np.testing.assert_array_equal(roll, roll_from_xml(source(name)))


@pytest.mark.slow  # parses the whole corpus: about twenty seconds
def test_all_chorales_equal_their_xml(tmp_path):
    rolls = chorale_rolls(tmp_path)
    assert len(rolls) == 329
    # Four voices: at most four pitches at a time, and every pitch of the range is sung by someone.
    assert max(int(roll.sum(axis=1).max()) for roll in rolls.values()) == 4
    assert np.concatenate(list(rolls.values())).any(axis=0).all()
    compared = 0
    for name, roll in rolls.items():
        path = source(name)
        if path.suffix == ".mxl":
            np.testing.assert_array_equal(roll, roll_from_xml(path), err_msg=name)
            compared += 1
    assert compared > 300


def test_task_predicts_the_next_chord(short_list):
    task = bach_chorales(length=30)
    held_out = bach_chorales(length=30, part="validation")
    rolls = list(chorale_rolls().values())
    training = [rolls[k] for k in (0, 1, 2, 3, 5, 6)]
    assert task.inputs.shape == (sum((len(r) - 1) // 30 for r in training), 30, 46)
    assert len(held_out.inputs) == (len(rolls[4]) - 1) // 30
    assert set(np.unique(task.targets)) == {-1, 1}
    # The targets are the chords themselves, one row later than the inputs.
    np.testing.assert_array_equal(task.targets[0], 2 * rolls[0][1:31].astype(int) - 1)
    np.testing.assert_array_equal(task.targets[1, -1], 2 * rolls[0][60].astype(int) - 1)
    rows = np.concatenate(training)
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    for this, first in ((task, rolls[0]), (held_out, rolls[4])):
        heard = std > 0
        np.testing.assert_allclose(
            this.inputs[0, :, heard].T, ((first[:30] - mean) / np.maximum(std, 1e-9))[:, heard], rtol=1e-5
        )
        assert not this.inputs[..., ~heard].any()
    assert task.describe()["checksum"] == task.checksum != held_out.checksum
    assert "music21" in task.provenance
    assert bach_chorales(n_chorales=1, length=30).checksum != task.checksum


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"n_chorales": 0}, "n_chorales=0"),
        ({"n_chorales": 7}, "between 1 and 6"),
        ({"length": 0}, "length=0"),
        ({"length": 5_000}, "length=5000"),
        ({"part": "test"}, "validation"),
    ],
)
def test_wrong_arguments(short_list, wrong, match):
    with pytest.raises(ArgumentError, match=match):
        bach_chorales(**wrong)


def test_parsed_once(short_list, monkeypatch):
    first = chorale_rolls()
    assert len(list(short_list.iterdir())) == 1

    def parse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(corpus, "parse", parse)
    again = chorale_rolls()
    assert list(first) == list(again)
    for name, roll in first.items():
        np.testing.assert_array_equal(roll, again[name])
    with pytest.raises(AssertionError):
        chorale_rolls(short_list / "elsewhere")


def test_interrupted_writing_leaves_nothing(short_list, monkeypatch):
    def interrupted(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(chorales.np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chorale_rolls()
    assert list(short_list.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_damaged_file_is_told(short_list, damage):
    chorale_rolls()
    (path,) = short_list.iterdir()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        with np.load(path) as file:
            arrays = dict(file)
        arrays["notes"][3, 2] ^= 1
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
    with pytest.raises(SchemaError, match="delete it"):
        chorale_rolls()


def test_cut_drops_the_remainder():
    long, short = np.arange(11)[:, None], np.arange(4)[:, None]
    assert cut([long, short], 5)[..., 0].tolist() == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]]
