"""The library behind carolina_originality.py, train.py and eval.py: one module, one idea."""

__version__ = "0.1.0"
