"""The house's own namespaces: who holds them, how they are entered, whose ids are in them.

docs/design/0002-house-namespace.md says why. `house.HouseNamespace` is what other rooms use.
Nothing is imported here: `inside/` runs with the standard library alone.
"""
