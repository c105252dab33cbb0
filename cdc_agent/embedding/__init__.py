"""Texts become vectors. One file per backend; ``base`` is the contract."""
