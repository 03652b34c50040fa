"""The models of one merge, opened and checked against each other. A recipe names them, or a call gives them."""
