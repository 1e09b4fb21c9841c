"""AT-mode distributed transactions for PostgreSQL and asyncio.

`coordinator.client` is the door for applications, `coordinator.resource` installs the protocol into a
database, `coordinator.tc` is the coordinator service; all three meet in `coordinator.protocol`.
Nothing in here knows what the transactions are about.
"""
