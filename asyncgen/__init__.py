"""Synthetic text data sets from a language model."""

__version__ = "0.1.0"
