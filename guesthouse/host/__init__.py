"""This machine: processes, the keeper, probing, folders."""
