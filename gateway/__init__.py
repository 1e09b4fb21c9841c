"""The one door: a routing table, the Nginx configuration rendered from it, and the merged API document."""
