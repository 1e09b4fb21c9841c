"""What people are told: in the app, by e-mail, as a live stream.

A service of its own because it is the only one that talks to the outside on nobody's request, because it may be slow or
down without any booking noticing, and because its rows grow fastest and are the first to be purged.
"""
