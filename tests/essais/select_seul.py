"""Un seul thread et select ; un recv compte pour un message ; les clients sont des adresses."""

import select
import socket

listener = socket.socket()
listener.bind(("127.0.0.1", 1234))
listener.listen()
sockets = [listener]
while True:
    for ready in select.select(sockets, [], [])[0]:
        if ready is listener:
            client, address = listener.accept()
            sockets.append(client)
            continue
        try:
            data = ready.recv(2048)
        except ConnectionError:
            data = b""
        if not data:
            sockets.remove(ready)
            ready.close()
            continue
        print(data.decode(errors="replace"))
        for other in sockets[1:]:
            if other is not ready:
                try:
                    other.send(data)
                except ConnectionError:
                    pass
