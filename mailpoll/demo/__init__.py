"""``make demo``: a whole mailpoll with a sample mail server, from nothing to verified mail."""
