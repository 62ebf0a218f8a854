"""The house's own network: bridges, names, rules and a way out, inside the house's namespace.

backend     `HouseNetwork`: what other rooms use
seats       what must be written down about cards; who keeps that is above
links       bridges and taps, as lines for ip(8)
dnsmasq     addresses and names: what dnsmasq is told (pure)
naming      those processes: started, told of changes, replaced
uplink      slirp4netns: the way out, and ports in
publishing  ports of the host that lead to guests
relay       the program that carries IPv6 ports to the uplink
loading     rules, into the kernel
hostside    addresses of the host itself, and when they change
services    processes that outlive the daemon

docs/design/0003-house-network.md says why.
"""
