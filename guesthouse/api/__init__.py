"""The HTTP API: decoding, authorising, encoding. No logic lives here."""
