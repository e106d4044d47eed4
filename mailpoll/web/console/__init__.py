"""The console for people who run mailpoll: pages that are made on the server, on top of the API.

It asks the API within the same process, with the token of the session, and never the database: so
scopes, audit, checks of fields and errors are those of the API, and nothing works here alone.
"""
