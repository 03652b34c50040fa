"""Files: ours and PEFT's. Pure functions over tensors and JSON; no model in sight."""
