"""The contract between client, resource and coordinator: pure values, no input or output.

`ids` names transactions and branches, `statuses` holds the one transition function, `messages` the wire
form, `errors` what can go wrong, `tokens` who may speak.
"""
