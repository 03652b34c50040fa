"""Numbers of a merge that are learned from rows, or searched by what the result scores."""
