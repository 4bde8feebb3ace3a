"""One grid of training runs, measured the same way, and the report on it."""
