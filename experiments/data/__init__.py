"""Data of the experiments: loaders of official releases, and their stand-ins.

Every loader raises a `FileNotFoundError` if a folder or a file is missing, and a
`files.ReleaseError`, which is a `ValueError`, if a file is damaged, is another one, or
does not belong to the rest; those that index images, when a sample is read. It raises a
`ValueError` for settings out of range, and an `ImportError` that says what to install.
"""
