"""Reviews of finished stays, both ways, shown when both are in.

A service of its own because fairness must not depend on whoever is reviewed: nobody but this service decides when a
review is shown, and how a score is made.
"""
