"""Corpus shards to documents, scores, splits, a dataset, a tokenizer and packed rows."""
