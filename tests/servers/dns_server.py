"""A DNS server (UDP) that knows what a test tells it, and nothing else."""

import socket
import threading
from dataclasses import dataclass, field
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


@dataclass(slots=True)
class DnsServer:
    """Serves in a thread on a loopback port.

    Parameters:
      records: (name, type) to texts, such as ``("example.org.", "MX"): ["10 mx.example.org."]``.
      later: what takes a record's place after it was asked for once.
      silent: it takes questions and never answers.
    """

    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    later: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    silent: bool = False
    #: What was asked, as (name, type).
    questions: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0
    _socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, args=(self._socket,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._socket
        self._socket.close()

    def _serve(self, sock: socket.socket) -> None:
        while True:
            try:
                wire, client = sock.recvfrom(4_096)
            except OSError:
                return
            answer = self._answer(dns.message.from_wire(wire))
            if not self.silent:
                sock.sendto(answer.to_wire(), client)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        (question,) = query.question
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        self.questions.append((name, kind))
        texts = self.records.get((name, kind))
        if (name, kind) in self.later:
            self.records[name, kind] = self.later.pop((name, kind))
        if texts:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *texts))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer
