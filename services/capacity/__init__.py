"""How many places a listing has on each night, held and booked.

A service of its own because it is what everybody races for: its rows are few, hot and narrow, its rule (never more
than there is) must hold whatever else is down, and it scales by listing, apart from the listings' texts and searches.
"""
