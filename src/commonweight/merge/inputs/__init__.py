"""The models of one merge: as a recipe names them or as a call gives them, opened and checked against each other."""
