"""The wireless set: the release in its three spellings, damage, the simulator."""

import sys

import h5py
import numpy as np
import pytest

from experiments.data import wireless
from experiments.data.radio import simulate
from experiments.data.wireless import (
    MODULATIONS,
    SIGNAL_TYPES,
    WAVEFORMS,
    load_wireless,
    parse_key,
)

NAMES = {
    "ota": "RadComOta2.45GHz.hdf5",
    "dynamic": "RadComDynamic.hdf5",
    "awgn": "RadComAWGN.hdf5",
}


def key_of(waveform, snr, number, style="ota"):
    """The name of a signal, as the three files spell it."""
    modulation, signal_type = WAVEFORMS[waveform]
    if style == "ota":
        return str((modulation, signal_type, str(snr), str(number)))
    modulation = modulation.lower().replace("-", "")
    spelling = {"SATCOM": "Satcom", "Radar Altimeter": "Radar-Altimeter"}
    if style == "awgn":
        spelling["SATCOM"] = "Raw"
    return str((modulation, spelling.get(signal_type, signal_type), snr, number))


def values_of(waveform, number, snr):
    """256 numbers that tell which signal they are of."""
    return np.arange(256) / 256 + 10 * waveform + 100 * number + 1e4 * snr


@pytest.fixture
def write(tmp_path):
    """Writes a file of the release with 8 signals of each waveform at 0 and 2 dB."""

    def write(style="ota", folder=tmp_path, num=8, skip=lambda key: False, extra=None):
        folder.mkdir(exist_ok=True)
        path = folder / NAMES[style]
        with h5py.File(path, "w") as file:
            for waveform in range(len(WAVEFORMS)):
                for number in range(num):
                    for snr in (0, 2):
                        key = key_of(waveform, snr, number, style)
                        if not skip(key):
                            file[key] = values_of(waveform, number, snr)
            for key, value in (extra or {}).items():
                file.pop(key, None)
                file[key] = value
        return path

    return write


def parts(data):
    return (data.train, data.validation, data.test)


@pytest.fixture
def unscaled(monkeypatch):
    """Signals stay as they are received."""
    monkeypatch.setattr(wireless, "scaler", lambda train: (0, 1))


def whole(data):
    """All signals, [num, 128, 2], and their waveforms."""
    signals = np.concatenate([part.signals for part in parts(data)])
    modulations = np.concatenate([part.modulations for part in parts(data)])
    signal_types = np.concatenate([part.signal_types for part in parts(data)])
    waveforms = [
        WAVEFORMS.index((MODULATIONS[modulation], SIGNAL_TYPES[signal_type]))
        for modulation, signal_type in zip(modulations, signal_types, strict=True)
    ]
    return signals, np.array(waveforms)


@pytest.mark.usefixtures("unscaled")
@pytest.mark.parametrize("style", NAMES)
def test_each_file_of_the_release_is_read(write, style):
    """Every signal of 0 dB comes once, with both its labels and its two channels."""
    path = write(style)
    data = load_wireless(path.parent)
    signals, waveforms = whole(data)
    assert signals.shape == (72, 128, 2)
    # The first in-phase value is 10 waveform + 100 number.
    code = np.rint(signals[:, 0, 0]).astype(int)
    np.testing.assert_array_equal(code % 100 // 10, waveforms)
    assert sorted(code) == sorted(10 * w + 100 * n for w in range(9) for n in range(8))
    for signal, waveform, one in zip(signals, waveforms, code, strict=True):
        expected = values_of(waveform, one // 100, 0).reshape(2, 128).T
        np.testing.assert_allclose(signal, expected, rtol=1e-6)
    assert data.source == (
        f"RadarCommDataset signals in {path} at 0 dB (41 train / 10 validation / 21 "
        "test)"
    )


@pytest.mark.usefixtures("unscaled")
def test_other_ratio(write):
    signals, _ = whole(load_wireless(write(), snr=2))
    assert signals.min() >= 2e4 - 10


@pytest.mark.usefixtures("unscaled")
def test_number_of_each_waveform_and_seed(write):
    path = write()
    first, again, other = (
        whole(load_wireless(path, num_each=3, seed=seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(np.bincount(first[1]), 3)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(np.sort(first[0][:, 0, 0]), np.sort(other[0][:, 0, 0]))
    assert len(np.unique(np.rint(first[0][:, 0, 0]))) == 27


def test_file_in_the_folder_of_its_archive(tmp_path, write):
    path = write("dynamic", folder=tmp_path / "RadComDynamic")
    assert str(path) in load_wireless(tmp_path).source


@pytest.mark.parametrize("waveform", range(len(WAVEFORMS)))
@pytest.mark.parametrize("style", NAMES)
def test_every_key_of_the_release_is_known(waveform, style):
    assert parse_key(key_of(waveform, -18, 699, style)) == (waveform, -18, 699)


BAD_KEYS = (
    "X",
    "('BPSK', 'SATCOM', '0')",
    "('BPSK', 'SATCOM', '0', 'nan')",
    "('QAM16', 'SATCOM', '0', '1')",
    "('BPSK', 'AM radio', '0', '1')",
    "('x'*9, __import__('os'), 0, 1)",
)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_foreign_key_is_refused(write, key):
    path = write(num=2, extra={key: np.zeros(256)})
    with pytest.raises(ValueError, match=r"names like .* of nine waveforms") as error:
        load_wireless(path)
    check_line(error, path, key)


KEY = key_of(3, 0, 1)
BAD_VALUES = {
    "short": (np.zeros(255), "256 real numbers"),
    "complex": (np.zeros(256, np.complex64), "256 real numbers"),
    "words": ([b"a"] * 256, "256 real numbers"),
    "not finite": (np.full(256, np.nan), "256 finite numbers"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_wrong_values_are_refused(write, case):
    value, message = BAD_VALUES[case]
    path = write(num=2, extra={KEY: value})
    with pytest.raises(ValueError, match=message) as error:
        load_wireless(path)
    check_line(error, path, KEY)


def test_group_in_place_of_a_signal(write):
    path = write(num=2, skip=lambda key: key == KEY)
    with h5py.File(path, "a") as file:
        file.create_group(KEY)
    with pytest.raises(ValueError, match="holds no array") as error:
        load_wireless(path)
    check_line(error, path, KEY)


def check_line(error, path, *words):
    """The message is one line and names the file."""
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in (str(path), *words))
    assert message.endswith("Copy it from RadarCommDataset again.")


def test_partial_file_is_refused(write):
    path = write(skip=lambda key: "Airborne-range" in key and "'0'" in key)
    with pytest.raises(ValueError, match="0 signals of PULSED Airborne-range") as error:
        load_wireless(path)
    check_line(error, path, "at 0 dB; expected at least 2")
    with pytest.raises(ValueError, match=r"8 signals of AM-DSB .* at least 9"):
        load_wireless(write(), num_each=9)
    with pytest.raises(ValueError, match="0 signals of AM-DSB AM radio at 1 dB"):
        load_wireless(path, snr=1)


DAMAGE = {
    "empty": lambda data: b"",
    "another format": lambda data: b"PK\3\4" + data,
    "half": lambda data: data[: len(data) // 2],
    "no index": lambda data: data[:600] + bytes(2000) + data[2600:],
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_file_is_refused(write, case):
    path = write(num=2)
    path.write_bytes(DAMAGE[case](path.read_bytes()))
    with pytest.raises(ValueError, match="cannot be read as HDF5") as error:
        load_wireless(path)
    check_line(error, path)


def test_missing_file_or_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent has no file of"):
        load_wireless(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no file of .*RadComDynamic\.hdf5"):
        load_wireless(tmp_path)


def test_several_files_are_not_guessed_between(write):
    folder = write("ota").parent
    write("awgn")
    with pytest.raises(ValueError, match=r"holds RadComOta.* and RadComAWGN.*Give one"):
        load_wireless(folder)


def test_without_h5py_the_error_says_what_to_install(write, monkeypatch):
    path = write(num=2)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"h5py, .*mtlopt\[experiments\]"):
        load_wireless(path)


@pytest.mark.parametrize("num", [-1, 1])
def test_number_is_checked(num):
    with pytest.raises(ValueError, match=f"`num_each` must be at least 2, got {num}"):
        load_wireless(num_each=num)


@pytest.fixture(scope="module")
def simulated():
    return load_wireless(num_each=100)


def test_simulated_sizes_labels_and_name(simulated):
    """All nine waveforms come equally often, and the source says simulated."""
    sizes = [len(part.signals) for part in parts(simulated)]
    assert sizes == [504, 126, 270]
    _, waveforms = whole(simulated)
    np.testing.assert_array_equal(np.bincount(waveforms), 100)
    assert simulated.source == (
        "simulated signals, not RadarCommDataset, at 0 dB (504 train / 126 validation "
        "/ 270 test)"
    )
    for part in parts(simulated):
        dtypes = [array.dtype for array in part]
        assert dtypes == [np.float32, np.int32, np.int32]
    assert len(load_wireless().train.signals) == 3528


def test_signals_are_standardised_by_the_train_split(simulated):
    np.testing.assert_allclose(simulated.train.signals.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(simulated.train.signals.std(axis=0), 1, rtol=1e-4)


@pytest.mark.usefixtures("unscaled")
def test_simulated_power_is_signal_plus_noise():
    """At 0 dB both have power 1; a signal's mean deviates by about 2 / sqrt(128)."""
    signals, waveforms = whole(load_wireless(num_each=100))
    power = np.sum(signals**2, axis=2).mean(axis=1)
    for waveform in range(len(WAVEFORMS)):
        mean = power[waveforms == waveform].mean()
        np.testing.assert_allclose(mean, 2, atol=5 * 0.18 / np.sqrt(100))


def test_simulation_depends_on_the_seed_only():
    first, again, other = (load_wireless(num_each=4, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train.signals, again.train.signals)
    assert not np.array_equal(first.train.signals, other.train.signals)


def clean(waveform, num=50):
    """Signals without noise, whose carriers are nearly at rest."""
    rng = np.random.default_rng(1)
    return simulate(WAVEFORMS[waveform], num, snr=100, rng=rng)


@pytest.mark.parametrize("waveform", range(len(WAVEFORMS)))
def test_clean_signals_have_unit_power(waveform):
    power = np.mean(np.abs(clean(waveform)) ** 2, axis=1)
    np.testing.assert_allclose(power, 1, rtol=1e-4)


def test_double_sideband_keeps_its_carrier_positive():
    """Envelope between 0.2 and 1.8 of the carrier: nine to one at most."""
    envelope = np.abs(clean(0))
    ratio = envelope.max(axis=1) / envelope.min(axis=1)
    assert np.median(ratio) > 2
    assert ratio.max() < 9.1


def test_single_sideband_is_one_sided():
    """Its spectrum lies between -0.01 and 0.07 cycles per sample, up to leakage."""
    spectrum = np.abs(np.fft.fft(clean(1) * np.hanning(128), axis=1)) ** 2
    frequency = np.fft.fftfreq(128)
    inside = (frequency > -0.03) & (frequency < 0.09)
    assert np.all(spectrum[:, inside].sum(axis=1) > 0.999 * spectrum.sum(axis=1))


def test_keying_has_two_levels_or_two_phases():
    """ASK has amplitudes 4 to 1; BPSK a constant one, and a pure tone squared."""
    amplitude = np.abs(clean(2))
    low, high = amplitude.min(axis=1), amplitude.max(axis=1)
    np.testing.assert_allclose(high / low, 4, rtol=1e-3)
    keyed = clean(3)
    np.testing.assert_allclose(np.abs(keyed), 1, rtol=1e-3)
    turn = keyed[:, 1:] * keyed[:, :-1].conj()
    np.testing.assert_allclose(np.ptp(np.angle(turn**2), axis=1), 0, atol=1e-3)
    assert np.all(turn.real.min(axis=1) < 0)  # each has a flip


def test_chirp_sweeps_its_band_at_constant_amplitude():
    """The frequency rises within a band of 0.25 to 0.35, and falls only to restart."""
    signals = clean(4)
    np.testing.assert_allclose(np.abs(signals), 1, rtol=1e-3)
    frequency = np.angle(signals[:, 1:] * signals[:, :-1].conj()) / (2 * np.pi)
    assert np.all(np.ptp(frequency, axis=1) > 0.2)
    assert np.all(np.ptp(frequency, axis=1) < 0.36)
    falls = np.sum(np.diff(frequency, axis=1) < 0, axis=1)
    assert falls.min() >= 1
    assert falls.max() <= 8  # at most four restarts, of two samples each


@pytest.mark.parametrize(
    ("waveform", "width", "period"), [(5, 6, 14), (6, 24, 72), (7, 4, 40), (8, 12, 26)]
)
def test_pulses_have_the_width_and_period_of_their_radar(waveform, width, period):
    """Each pulse is `width` samples and starts `period` after the last, to a tenth."""
    on = np.abs(clean(waveform)) > 0.1
    for row in on:
        edges = np.flatnonzero(np.diff(row.astype(int)))
        starts = edges[~row[edges]]
        # A pulse cut by an end of the signal does not count.
        ends = edges[row[edges] & (edges > starts[0])]
        widths = ends - starts[: len(ends)]
        assert np.all(np.abs(widths - width) <= 0.1 * width + 1)
        assert np.all(np.abs(np.diff(starts) - period) <= 0.1 * period + 1)
