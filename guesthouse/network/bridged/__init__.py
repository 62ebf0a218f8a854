"""Networks of the host's own interfaces: how an interface becomes a port of a bridge, and is given
back. docs/design/0004-bridged-networks.md says why it is as it is.

Everything here changes the host's own network, which nothing else in the house does.
"""
