"""Dense models become the experts of one mixture: its layout, its gates, its tasks."""
