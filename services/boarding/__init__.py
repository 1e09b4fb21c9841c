"""Listings: what providers offer, found, priced and quoted.

A service of its own because it is read a hundred times for every booking: cached, searched and scaled for reading,
and a slow search must not slow a payment. What can run out lives in the capacity service.
"""
