"""Research without re-search (nanoLM, Algorithm 1): designs compared at a target size from their proxies alone."""
