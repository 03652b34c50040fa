"""What goes in: models as sources of tensors, from memory or disk, quantised, with an adapter or a tenant on them."""
