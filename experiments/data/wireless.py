"""Radar and radio signals by modulation and by type (Jagannath & Jagannath, 2021)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.files import open_hdf5, release_error
from experiments.data.radio import simulate
from experiments.data.splits import scaler, split_sizes

MODULATIONS = ("AM-DSB", "AM-SSB", "ASK", "BPSK", "FMCW", "PULSED")
SIGNAL_TYPES = (
    "AM radio",
    "Air-Ground-MTI",
    "Airborne-detection",
    "Airborne-range",
    "Ground mapping",
    "Radar Altimeter",
    "SATCOM",
    "short-range",
)
# The nine waveforms: a modulation never comes with another type.
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

_RELEASE = "RadarCommDataset"
_FILES = ("RadComOta2.45GHz.hdf5", "RadComDynamic.hdf5", "RadComAWGN.hdf5")
_NUM_SAMPLES = 128  # complex, of a signal
_SIMULATED_EACH = 700  # of each waveform: as many as the release states
_KEY = re.compile(r"\('([^']+)', '([^']+)', '?(-?\d+)'?, '?(\d+)'?\)")


class Split(NamedTuple):
    """Signals, standardised, with the label of each task.

    signals: float32 [num, 128, 2], in phase and quadrature. modulations: int32 [num],
    places in `MODULATIONS`. signal_types: int32 [num], places in `SIGNAL_TYPES`.
    """

    signals: np.ndarray
    modulations: np.ndarray
    signal_types: np.ndarray


@dataclass(frozen=True)
class Wireless:
    """Three splits and, in words, where the signals come from.

    `mean` and `std`, float32 [128, 2], are those of the train signals:
    `signals * std + mean` are the signals as they were received.
    """

    train: Split
    validation: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray
    source: str


def load_wireless(
    data: Path | None = None,
    *,
    num_each: int | None = None,
    snr: int = 0,
    seed: int = 0,
) -> Wireless:
    """Loads the signals of one signal-to-noise ratio, or simulates them.

    All are standardised, each of the 256 values by itself, by the mean and standard
    deviation of the train signals.

    Args:
        data: one of the HDF5 files of RadarCommDataset, or the folder that holds
            one. None simulates signals of the same nine waveforms, see `simulate`.
        num_each: the number of signals of each waveform; 7,000 make the paper's
            63,000. None takes all of the release, or simulates 700.
        snr: the signal-to-noise ratio in decibel. The release has even ones from -20
            to 18; the paper takes 0.
        seed: picks the split, the signals taken if not all, and the simulated ones.

    Returns:
        The splits, with three tenths for testing and a fifth of the rest for
        validation: 35,280, 8,820 and 18,900 of 63,000. `source` names the signals for
        a table or a log.

    Raises:
        FileNotFoundError: if `data` or its HDF5 file is missing.
        ValueError: if the file is damaged, partial or another one, if a folder holds
            several, or if `num_each` is below 2.
        ImportError: if `data` is given and h5py is not installed.

    References:
        Jagannath and Jagannath, "Dataset for modulation classification and signal type
        classification for multi-task and single task learning", 2021,
        https://doi.org/10.1016/j.comnet.2021.108441 (the signals); Bellavia et al.,
        "ATE-SG: alternate through the epochs stochastic gradient for multi-task neural
        networks", section 4.2.1 (their use). That paper feeds 256 numbers and reshapes
        them to 128 x 2 itself; the release keeps all in-phase values first, and here
        the two parts of a complex sample are side by side.
    """
    if num_each is not None and num_each < 2:
        raise ValueError(f"`num_each` must be at least 2, got {num_each}.")
    # A stream each, so that the simulated signals do not depend on the split.
    for_signals, for_split = map(
        np.random.default_rng, np.random.SeedSequence(seed).spawn(2)
    )
    if data is None:
        num_each = _SIMULATED_EACH if num_each is None else num_each
        shape = [len(WAVEFORMS), num_each, _NUM_SAMPLES]
        complex_signals = np.empty(shape, np.complex64)
        for place, waveform in enumerate(WAVEFORMS):
            complex_signals[place] = simulate(
                waveform, num_each, snr=snr, rng=for_signals
            )
        # A complex number is its two parts side by side.
        signals = complex_signals.view(np.float32).reshape(-1, _NUM_SAMPLES, 2)
        waveforms = np.repeat(np.arange(len(WAVEFORMS)), num_each)
        origin = "simulated signals, not RadarCommDataset,"
    else:
        path = _find(Path(data))
        signals, waveforms = _read_release(path, num_each, snr, for_signals)
        origin = f"RadarCommDataset signals in {path}"

    modulations, signal_types = (
        np.array([names.index(waveform[task]) for waveform in WAVEFORMS], np.int32)
        for task, names in enumerate((MODULATIONS, SIGNAL_TYPES))
    )
    sizes = split_sizes(len(signals))
    order = for_split.permutation(len(signals))
    places = np.split(order, np.cumsum(sizes)[:2])
    mean, std = scaler(signals[places[0]])
    train, validation, test = (
        Split(
            (signals[part] - mean) / std,
            modulations[waveforms[part]],
            signal_types[waveforms[part]],
        )
        for part in places
    )
    numbers = "{:,} train / {:,} validation / {:,} test".format(*sizes)
    source = f"{origin} at {snr} dB ({numbers})"
    return Wireless(train, validation, test, mean, std, source)


def parse_key(key: str) -> tuple[int, int, int]:
    """Reads the name of a signal of the release.

    The three files spell names in their own ways: `"('pulsed', 'Ground mapping', 0,
    12)"` is in RadComDynamic and `"('PULSED', 'Ground mapping', '0', '12')"` in
    RadComOta2.45GHz. RadComAWGN calls the type SATCOM "Raw", as the release says.

    Args:
        key: the name.

    Returns:
        The waveform, as a place in `WAVEFORMS`, the signal-to-noise ratio in decibel
        and the number of the signal.

    Raises:
        ValueError: if it is no name of one of the nine waveforms.

    Examples:
        >>> parse_key("('amdsb', 'AM radio', -20, 699)")
        (0, -20, 699)
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError("is not of the form ('bpsk', 'SATCOM', 0, 12)")
    modulation, signal_type, snr, number = match.groups()
    if _plain(signal_type) == "raw":
        signal_type = "SATCOM"
    place = _PLACES.get((_plain(modulation), _plain(signal_type)))
    if place is None:
        raise ValueError("names none of the nine waveforms")
    return place, int(snr), int(number)


def _plain(name: str) -> str:
    """Returns a name without its case, hyphens, underscores and blanks."""
    return re.sub(r"[-_ ]", "", name).lower()


_PLACES = {
    (_plain(modulation), _plain(signal_type)): place
    for place, (modulation, signal_type) in enumerate(WAVEFORMS)
}


def _find(data: Path) -> Path:
    """Returns the HDF5 file of the release at or in `data`."""
    wanted = f"one of {', '.join(_FILES)}"
    if data.is_file():
        return data
    if not data.is_dir():
        raise FileNotFoundError(
            f"`data` must be a file or a folder, got {data}. Give {wanted}, or the "
            "folder that holds it."
        )
    # The archives unpack to a folder of the same name.
    candidates = [
        path
        for name in _FILES
        for path in (data / name, data / name.removesuffix(".hdf5") / name)
    ]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{data} has no file of {_RELEASE}. It must hold {wanted}."
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(
            f"{data} holds {names}. Give one of these files, not the folder."
        )
    return found[0]


def _read_release(
    path: Path, num_each: int | None, snr: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the signals of one signal-to-noise ratio, one at a time."""
    with open_hdf5(path, f"one of {_FILES}", _RELEASE) as file:
        chosen = _choose(path, file, num_each, snr, rng)
        signals = np.empty([len(chosen), _NUM_SAMPLES, 2], np.float32)
        for signal, (_, _, key) in zip(signals, chosen, strict=True):
            signal[:] = _read_signal(path, file, key)
    return signals, np.array([waveform for waveform, _, _ in chosen])


def _choose(
    path: Path, file: Any, num_each: int | None, snr: int, rng: np.random.Generator
) -> list[tuple[int, int, str]]:
    """Returns waveform, number and key of the signals to read, in that order."""
    rows: list[list[tuple[int, int, str]]] = [[] for _ in WAVEFORMS]
    for key in file:
        try:
            waveform, its_snr, number = parse_key(key)
        except ValueError as error:
            found = f"holds {key!r}, which {error}"
            expected = "the signals of the nine waveforms and nothing else"
            raise release_error(path, found, expected, _RELEASE) from error
        if its_snr == snr:
            rows[waveform].append((waveform, number, key))
    needed = 2 if num_each is None else num_each
    for waveform, row in zip(WAVEFORMS, rows, strict=True):
        if len(row) < needed:
            found = f"has {len(row)} signals of {' '.join(waveform)} at {snr} dB"
            expected = f"at least {needed}"
            raise release_error(path, found, expected, _RELEASE)
        row.sort()
    if num_each is not None:
        rows = [
            [row[i] for i in np.sort(rng.permutation(len(row))[:num_each])]
            for row in rows
        ]
    return [signal for row in rows for signal in row]


def _read_signal(path: Path, file: Any, key: str) -> np.ndarray:
    """Reads one signal, [128, 2]."""
    entry = file[key]
    size, kind = getattr(entry, "size", None), getattr(entry, "dtype", None)
    if size != 2 * _NUM_SAMPLES or kind is None or kind.kind not in "fiu":
        found = f"holds {entry} at {key!r}"
        raise release_error(path, found, "256 real numbers", _RELEASE)
    values = np.asarray(entry[()], np.float32)
    if not np.isfinite(values).all():
        found = f"holds values that are not finite at {key!r}"
        raise release_error(path, found, "256 finite numbers", _RELEASE)
    return values.reshape(2, _NUM_SAMPLES).T
