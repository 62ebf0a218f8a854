"""Where documents live: the contract and its SQLite implementation."""
