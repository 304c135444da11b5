"""Radar and radio signals with modulation and type (Jagannath & Jagannath, 2021)."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.files import Release
from experiments.data.radio import simulate
from experiments.data.splits import (
    Splits,
    check_least,
    cut,
    in_words,
    pick,
    scaler,
    streams,
)

# The nine waveforms, which are the only combinations of modulation and type.
WAVEFORMS = (
    ("AM-DSB", "AM radio"),
    ("AM-SSB", "AM radio"),
    ("ASK", "short-range"),
    ("BPSK", "SATCOM"),
    ("FMCW", "Radar Altimeter"),
    ("PULSED", "Air-Ground-MTI"),
    ("PULSED", "Airborne-detection"),
    ("PULSED", "Airborne-range"),
    ("PULSED", "Ground mapping"),
)
MODULATIONS = tuple(sorted({modulation for modulation, _ in WAVEFORMS}))
SIGNAL_TYPES = tuple(sorted({signal_type for _, signal_type in WAVEFORMS}))

# The two labels of each waveform.
_LABELS = [
    np.array([names.index(waveform[task]) for waveform in WAVEFORMS], np.int32)
    for task, names in enumerate((MODULATIONS, SIGNAL_TYPES))
]

_RELEASE = Release("RadarCommDataset")
_FILES = ("RadComOta2.45GHz.hdf5", "RadComDynamic.hdf5", "RadComAWGN.hdf5")
_NUM_SAMPLES = 128  # complex, of a signal
_SIMULATED_EACH = 700  # of each waveform: as many as the release states
_KEY = re.compile(r"\('([^']+)', '([^']+)', '?(-?\d{1,9})'?, '?(\d{1,9})'?\)")


class Split(NamedTuple):
    """Signals, standardised, with the label of each task."""

    signals: np.ndarray  # float32 [num, 128, 2], in phase and quadrature
    modulations: np.ndarray  # int32 [num], places in `MODULATIONS`
    signal_types: np.ndarray  # int32 [num], places in `SIGNAL_TYPES`


def load_wireless(
    data: Path | None = None,
    *,
    num_each: int | None = None,
    snr: int = 0,
    seed: int = 0,
) -> Splits[Split]:
    """Loads the signals of one signal-to-noise ratio, or simulates them.

    `data` is one of the HDF5 files of RadarCommDataset, or the folder with this file.
    Without `data`, signals of the same nine waveforms are simulated, see `simulate`.
    There are `num_each` signals of each waveform; 7,000 give the paper's 63,000. If
    `num_each` is None, all signals are used, or 700 are simulated. `snr` is in
    decibels: the release has even values from -20 to 18, and the paper uses 0. The seed
    selects the signals and the split.

    Each of the 256 values of a signal is standardised by its mean and standard
    deviation over the train signals.

    References:
        Jagannath and Jagannath, "Dataset for modulation classification and signal type
        classification for multi-task and single task learning", 2021,
        https://doi.org/10.1016/j.comnet.2021.108441 (the signals); Bellavia et al.,
        "ATE-SG: alternate through the epochs stochastic gradient for multi-task neural
        networks", section 4.2.1 (their use). The release stores all in-phase values
        first; here the two parts of a complex sample are neighbours.
    """
    check_least(2, num_each=num_each)
    for_signals, for_split = streams(seed, 2)
    if data is None:
        num_each = num_each or _SIMULATED_EACH
        simulated = [
            simulate(waveform, num_each, snr=snr, rng=for_signals)
            for waveform in WAVEFORMS
        ]
        # The two parts of a complex number are neighbours.
        signals = np.stack(simulated).view(np.float32).reshape(-1, _NUM_SAMPLES, 2)
        waveforms = np.repeat(np.arange(len(WAVEFORMS)), num_each)
        origin = "simulated signals, not RadarCommDataset,"
    else:
        path = _find(Path(data))
        signals, waveforms = _read_release(path, num_each, snr, for_signals)
        origin = f"RadarCommDataset signals in {path}"

    places = cut(for_split.permutation(len(signals)))
    mean, std = scaler(signals[places[0]])
    train, validation, test = (
        Split(
            (signals[part] - mean) / std,
            *(labels[waveforms[part]] for labels in _LABELS),
        )
        for part in places
    )
    source = f"{origin} at {snr} dB ({in_words(*map(len, places))})"
    return Splits(train, validation, test, source)


def parse_key(key: str) -> tuple[int, int, int] | None:
    """Returns waveform, ratio in decibel and number from the name of a signal.

    The waveform is an index of `WAVEFORMS`; the result is None for any other name. The
    three files spell names differently, with or without hyphens, capitals and quotes
    around the numbers. RadComAWGN calls the type SATCOM "Raw", as the release says.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    modulation, signal_type = map(_plain, match.group(1, 2))
    place = _PLACES.get((modulation, signal_type.replace("raw", "satcom")))
    return None if place is None else (place, int(match[3]), int(match[4]))


def _plain(name: str) -> str:
    """Returns a name in lower case, without hyphens, underscores and blanks."""
    return re.sub(r"[-_ ]", "", name).lower()


_PLACES = {
    (_plain(modulation), _plain(signal_type)): place
    for place, (modulation, signal_type) in enumerate(WAVEFORMS)
}


def _find(data: Path) -> Path:
    """Returns the HDF5 file of the release at or in `data`."""
    if data.is_file():
        return data
    wanted = f"one of {', '.join(_FILES)}, or the folder that holds it"
    found = [
        folder / name
        for name in _FILES
        # The archives unpack to a folder of the same name.
        for folder in (data, data / name.removesuffix(".hdf5"))
        if (folder / name).exists()
    ]
    if not found:
        raise FileNotFoundError(f"{data} has no file of {_RELEASE}. Give {wanted}.")
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"{data} holds {names}. Give one of them, not the folder.")
    return found[0]


def _read_release(
    path: Path, num_each: int | None, snr: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the signals of one signal-to-noise ratio, one at a time."""
    with _RELEASE.hdf5(path, f"one of {_FILES}") as file:
        rows = _index(path, file, snr)
        for waveform, row in zip(WAVEFORMS, rows, strict=True):
            if len(row) < (num_each or 2):
                found = f"has {len(row)} signals of {' '.join(waveform)} at {snr} dB"
                raise _RELEASE.error(path, found, f"at least {num_each or 2}")
        keys = [
            [row[i] for i in pick("num_each", np.arange(len(row)), num_each, rng)]
            for row in rows
        ]
        signals = [_read_signal(path, file, key) for row in keys for key in row]
    return np.stack(signals), np.repeat(np.arange(len(rows)), [len(k) for k in keys])


def _index(path: Path, file: Any, snr: int) -> list[list[str]]:
    """Returns the keys of the signals of each waveform, in order of their numbers."""
    rows: list[list[tuple[int, str]]] = [[] for _ in WAVEFORMS]
    for key in file:
        parsed = parse_key(key)
        if parsed is None:
            expected = "names like ('bpsk', 'SATCOM', 0, 12) of nine waveforms"
            raise _RELEASE.error(path, f"holds {key[:60]!r}", expected)
        waveform, its_snr, number = parsed
        if its_snr == snr:
            rows[waveform].append((number, key))
    return [[key for _, key in sorted(row)] for row in rows]


def _read_signal(path: Path, file: Any, key: str) -> np.ndarray:
    """Reads one signal, [128, 2]."""
    entry = _RELEASE.dataset(path, file, key)
    if entry.size != 2 * _NUM_SAMPLES or entry.dtype.kind not in "fiu":
        found = f"holds {entry.dtype} {entry.shape} at {key!r}"
        raise _RELEASE.error(path, found, "256 real numbers")
    values = np.asarray(entry[()], np.float32)
    if not np.isfinite(values).all():
        found = f"holds values that are not finite at {key!r}"
        raise _RELEASE.error(path, found, "256 finite numbers")
    return values.reshape(2, _NUM_SAMPLES).T
