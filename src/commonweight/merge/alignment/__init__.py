"""Units put in the same order before weights are merged. Networks and experts merged by how their units fit."""
