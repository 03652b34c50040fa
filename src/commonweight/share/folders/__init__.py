"""The forms in which a shared model is written: one file a form, ``write(model, folder)``."""
