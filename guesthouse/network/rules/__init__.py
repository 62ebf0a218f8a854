"""The firewall: one model of rules, compiled for the kernel and walked through for people.

ruleset     what is read: networks, cards, groups, sets, published ports
steps       which rules apply to a card, in what order
compiling   the text for `nft -f -`; out of text, statements, cards, house and spoofing
deciding    the dry run; out of packet and explaining
counters    read back from `nft -j list`
probing     what this kernel can do
"""
