"""The marketplace: nine services, each the same inside, over one kit."""
