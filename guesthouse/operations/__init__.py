"""The verbs of the house, one file per family. Each runs as a job."""
