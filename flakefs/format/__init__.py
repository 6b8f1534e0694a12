"""Pure description of what is stored: documents, extent arithmetic, hash, codec, placement, version."""
