"""What `make demo` runs: fifteen tenants of one small encoder, trained, saved, and served in one batch."""
