"""The command line, one file per command family. Talks only to `guesthouse.client`."""
