"""Callbacks, loggers and trackers for training frameworks, made of the functions that a training script has, too."""
