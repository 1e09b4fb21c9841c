"""Accounts, logins and roles: who somebody is.

A service of its own because secrets (password hashes, sessions, personal data) live here and nowhere else, because
every other service trusts what it signs, and because it grows with people, not with bookings: it is sharded by user.
"""
