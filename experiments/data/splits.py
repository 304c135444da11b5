"""What the data sets of the ATE paper share: split and scaler."""

import numpy as np


def split_sizes(num: int) -> tuple[int, int, int]:
    """Returns the numbers of train, validation and test samples out of `num`.

    Three tenths are for testing, and a fifth of the rest is for validation: 5,600,
    1,400 and 3,000 of 10,000.

    Args:
        num: the number of samples, 10 at least.

    Returns:
        Three numbers that are 1 at least and sum to `num`.

    Raises:
        ValueError: if `num` is below 10.

    Examples:
        >>> split_sizes(63_000)
        (35280, 8820, 18900)

    References:
        Bellavia et al., "ATE-SG: alternate through the epochs stochastic gradient for
        multi-task neural networks", sections 4.1 and 4.2.1.
    """
    if num < 10:
        raise ValueError(
            f"`num` must be at least 10, so that every split has one, got {num}."
        )
    num_test = num * 3 // 10
    num_validation = (num - num_test) // 5
    return num - num_test - num_validation, num_validation, num_test


def scaler(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of every input of the train samples.

    They are those of scikit-learn's `StandardScaler`: an input that never varies gets
    the standard deviation 1, so that scaling it gives zero and not NaN.

    Args:
        train: the train samples, `[num, ...]`.

    Returns:
        Two float32 arrays `[...]`, to be used as `(samples - mean) / std`.

    Examples:
        >>> scaler(np.array([[1.0, 5.0], [3.0, 5.0]]))
        (array([2., 5.], dtype=float32), array([1., 1.], dtype=float32))
    """
    mean = train.mean(axis=0, dtype=np.float64)
    std = train.std(axis=0, dtype=np.float64)
    std[np.ptp(train, axis=0) == 0] = 1
    return mean.astype(np.float32), std.astype(np.float32)
