"""Une ligne JSON par message."""

import json
import socket
import threading

files = []


def serve(sock):
    file = sock.makefile("rw")
    print(json.dumps({"type": "hello"}), file=file, flush=True)
    files.append(file)
    for line in file:
        message = json.loads(line)
        for other in files:
            answer = {"from": message["name"], "text": message["text"]}
            print(json.dumps(answer), file=other, flush=True)


listener = socket.create_server(("127.0.0.1", 7001))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
