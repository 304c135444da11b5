"""Data of the experiments: loaders of official releases, and their stand-ins.

Every loader raises a `FileNotFoundError` if a folder or a file is missing. It raises a
`files.ReleaseError`, which is a `ValueError`, if a file is damaged, is a different
file, or does not match the other files. Loaders that index images raise this error when
a sample is read. A `ValueError` reports settings out of range, and an `ImportError`
says which package to install.
"""
