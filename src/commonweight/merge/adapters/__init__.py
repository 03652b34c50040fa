"""Adapters and tenants merged with each other, and LoRA extracted from a full model."""
