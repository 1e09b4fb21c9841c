"""How a global transaction travels: by HTTP (`http`, `litestar`) and by message (`dramatiq`).

Each module needs the package it is named after; the client itself needs none of them.
"""
