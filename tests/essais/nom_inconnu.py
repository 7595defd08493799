"""Une faute de frappe, avant d'écouter."""

import socket

server = socket.socket()
server.bind(("127.0.0.1", PROT))
server.listen()
