"""Settings to a trained run: objectives, model, optimizer, Trainer, the run's folder."""
