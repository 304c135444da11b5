"""Aligned-MTL: Senushkin et al., 2023."""
