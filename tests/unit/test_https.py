"""One HTTP request: its time is over for good."""

import socket
import time

from urllib3.connection import HTTPConnection

from mailpoll.imap.https import bounded


def test_a_connection_that_comes_when_the_time_is_over_is_cut_too() -> None:
    # Given a connection that has no socket yet when its time ends, as while TLS is agreed on
    here, there = socket.socketpair()
    connection = HTTPConnection("localhost")
    with there, bounded(connection, 0.05):
        time.sleep(0.2)
        here.settimeout(20)
        connection.sock = here
        # Then what is read from it ends, though the server holds it open
        assert here.recv(1) == b""
