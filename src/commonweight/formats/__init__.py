"""Files, ours and PEFT's: pure functions over tensors and JSON. No model in sight."""
