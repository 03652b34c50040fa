"""Units put in the same order before weights are merged; networks and experts merged by how their units fit."""
