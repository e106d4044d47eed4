"""Faults on a whole mailpoll of real processes, and a checker of its own for what is left.

``python -m tests.campaign`` runs them; ``docs/reliability.md`` says what each one is.
"""
