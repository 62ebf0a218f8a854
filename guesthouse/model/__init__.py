"""The nouns of the house as typed documents. No input or output."""
