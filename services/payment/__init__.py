"""Wallets, escrow and the double-entry ledger.

A service of its own because money has other rules than bookings: nothing is ever changed or removed, every amount has a
counterpart, few may touch it, and it is audited alone.
"""
