"""Models whose vocabularies differ: which token is which row, and rows mapped as they are read."""
