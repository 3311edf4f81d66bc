"""The doors: models and data come in here and become IR and arrays."""
