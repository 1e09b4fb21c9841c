"""Pets, their health and care plans, and which pet is where on which night.

A service of its own because a pet belongs to its owner, not to a booking: it is described once, by the one who knows
it, and the rule that it cannot be in two places at once holds across all listings and providers.
"""
