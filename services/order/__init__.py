"""Bookings and their life from the first request to the settled stay.

A service of its own, because an order outlives every other part of a booking and is the only place where its state is
decided: nights, pets and money belong to others and follow it in global transactions. It is sharded by the owner, who
reads most; the provider has an index of their own orders on their own shard.
"""
