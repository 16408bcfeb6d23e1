"""Fault injection: which gate catches which fault, and that no gate fails on a healthy variant.

`cases/` lists the cases, `edits/` holds what they alter a candidate with, the modules here judge them.
"""
