"""Approvals, moderation and the audit log; the running state of the whole.

A service of its own because what administrators do must be recorded where nobody else writes, and because looking at
the whole system must not depend on any one part of it being well.
"""
