"""The coordinator service (TC): decisions about global transactions, durable in PostgreSQL, over HTTP.

`app.create_app` builds it, `python -m coordinator.tc` serves it. Inside: `core` decides without input or output,
`store` keeps, `batches` commits what arrives together at once, `waits` holds the blocked and breaks cycles, `nudges`
tells the resources, `recovery` does what is due with time, `replica` wires them.
"""
