"""Records -> what people read. From records alone: no torch, no network, the same bytes for the same records."""
