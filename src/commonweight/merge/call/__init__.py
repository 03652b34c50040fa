"""A method called from Python: whole models in, a state dict out."""
