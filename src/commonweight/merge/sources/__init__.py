"""What goes in: models as sources of tensors, on disk or in memory. Quantised, with an adapter or a tenant too."""
