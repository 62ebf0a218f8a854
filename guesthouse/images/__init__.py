"""Images: the catalogue and the builders."""
