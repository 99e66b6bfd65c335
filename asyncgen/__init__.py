"""Synthetic text data sets from a language model."""
