"""Simulated radar and radio signals: a stand-in for RadarCommDataset.

The waveforms, the number of samples and the labels follow the data set. The data set
publishes no numbers for message bands, symbol rates and pulse widths, so they are our
own choice. Accuracies on these signals say nothing about accuracies on real signals.
"""

import numpy as np

_NUM_SAMPLES = 128
_MAX_OFFSET = 0.01  # of the carrier, cycles per sample
_SYMBOL = 8  # samples per symbol of ASK and BPSK
_NUM_TONES = 4  # in an AM message
_TONES = (0.01, 0.06)  # their frequencies, cycles per sample
_SWEEP = (0.25, 0.35)  # of the chirp, cycles per sample
_SWEEP_LENGTH = (40, 60)  # samples
_JITTER = 0.1  # of pulse widths and periods, relative
# Pulse width and period in samples. The four radars differ in both.
_PULSES = {
    "Air-Ground-MTI": (6, 14),
    "Airborne-detection": (24, 72),
    "Airborne-range": (4, 40),
    "Ground mapping": (12, 26),
}


def simulate(
    waveform: tuple[str, str], num: int, *, snr: float, rng: np.random.Generator
) -> np.ndarray:
    r"""Simulates received signals of one waveform, complex64 [num, 128].

    .. math:: x_n = s_n e^{i (2 \pi f n + \phi)} + w_n, \qquad
        \frac{1}{128} \sum_n |s_n|^2 = 1, \qquad E |w_n|^2 = 10^{-snr / 10}

    The phase is uniform and the carrier offset f is uniform up to 0.01 cycles per
    sample; the noise w is complex Gaussian. The waveforms s, by modulation, are

        AM-DSB   carrier plus a message of four tones between 0.01 and 0.06 cycles
        AM-SSB   its upper sideband alone, without carrier
        ASK      rectangular symbols of 8 samples, amplitude 1 or 1/4
        BPSK     rectangular symbols of 8 samples, amplitude 1 or -1
        FMCW     a chirp over 0.25 to 0.35 cycles, again every 40 to 60 samples
        PULSED   rectangular pulses; width and period tell the four radars apart

    each with its own random message, symbols, delay and rates.
    """
    modulation, signal_type = waveform
    if modulation.startswith("AM"):
        clean = _amplitude_modulated(num, modulation == "AM-DSB", rng)
    elif modulation in ("ASK", "BPSK"):
        clean = _keyed(num, 0.25 if modulation == "ASK" else -1.0, rng)
    elif modulation == "FMCW":
        clean = _chirps(num, rng)
    else:
        clean = _pulses(num, *_PULSES[signal_type], rng)
    clean = clean / np.sqrt(np.mean(np.abs(clean) ** 2, axis=1, keepdims=True))
    offset, phase = rng.uniform(-1, 1, [2, num, 1])
    carrier = _MAX_OFFSET * offset * np.arange(_NUM_SAMPLES) + phase / 2
    noise = rng.normal(size=[2, num, _NUM_SAMPLES]) * np.sqrt(10 ** (-snr / 10) / 2)
    received = clean * np.exp(2j * np.pi * carrier) + noise[0] + 1j * noise[1]
    return received.astype(np.complex64)


def _amplitude_modulated(
    num: int, both_sides: bool, rng: np.random.Generator
) -> np.ndarray:
    """Returns messages of a few tones: real with a carrier, or their upper sideband."""
    time = np.arange(_NUM_SAMPLES)
    frequency = rng.uniform(*_TONES, [num, _NUM_TONES, 1])
    phase, loudness = rng.uniform(size=[2, num, _NUM_TONES, 1])
    tones = (0.5 + loudness) * np.exp(2j * np.pi * (frequency * time + phase))
    message = tones.sum(axis=1)
    if not both_sides:
        return message
    # The envelope stays positive, so that a receiver could follow it.
    return 1 + 0.8 * message.real / np.abs(message.real).max(axis=1, keepdims=True)


def _keyed(num: int, low: float, rng: np.random.Generator) -> np.ndarray:
    """Returns random symbols, 1 or `low`, that start at a random place."""
    high = rng.integers(2, size=[num, _NUM_SAMPLES // _SYMBOL + 1])
    # Two symbols in the middle always differ, because equal symbols would hide the
    # keying.
    high[:, high.shape[1] // 2] = 1 - high[:, high.shape[1] // 2 - 1]
    start = rng.integers(_SYMBOL, size=[num, 1])
    symbol = (np.arange(_NUM_SAMPLES) + start) // _SYMBOL
    return np.where(np.take_along_axis(high, symbol, axis=1), 1.0, low)


def _chirps(num: int, rng: np.random.Generator) -> np.ndarray:
    """Returns chirps whose frequency rises in a sawtooth around zero."""
    sweep = rng.uniform(*_SWEEP, [num, 1])
    length = rng.uniform(*_SWEEP_LENGTH, [num, 1])
    start = rng.uniform(size=[num, 1])
    place = (np.arange(_NUM_SAMPLES) / length + start) % 1
    # The integral of sweep (place - 1/2) over time; it is 0 at both ends of a sweep.
    return np.exp(1j * np.pi * sweep * length * place * (place - 1))


def _pulses(
    num: int, width: float, period: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns rectangular pulses; each signal has its own width, period and delay."""
    factors = rng.uniform(1 - _JITTER, 1 + _JITTER, [2, num, 1])
    width, period = width * factors[0], period * factors[1]
    place = (np.arange(_NUM_SAMPLES) + period * rng.uniform(size=[num, 1])) % period
    return (place < width).astype(float)
