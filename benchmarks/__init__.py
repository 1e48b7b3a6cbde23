"""Benchmarks of fastswl; see README.md in this folder.

asv imports every module here, so none may need more than NumPy and fastswl until it is used.
"""
