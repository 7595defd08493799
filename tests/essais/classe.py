"""Une classe, des lignes, un verrou, des noms vérifiés : l'étape 6, écrite autrement."""

import socket
import threading


class ChatServer:
    def __init__(self, port):
        self.members = {}
        self.lock = threading.RLock()
        self.listener = socket.create_server(("localhost", port))

    def run(self):
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def say(self, line, sender=None):
        print(line, flush=True)
        with self.lock:
            for name, sock in self.members.items():
                if name != sender:
                    try:
                        sock.sendall((line + "\n").encode())
                    except OSError:
                        pass

    def serve(self, sock):
        name = None
        try:
            for raw in sock.makefile("rb"):
                line = "".join(c for c in raw.decode(errors="replace") if c.isprintable())
                with self.lock:
                    if name is None and line.isalpha() and line not in self.members:
                        name = line
                        self.members[name] = sock
                        self.say(f"{name} entre", name)
                    elif name is None:
                        sock.sendall(b"Choisissez un autre nom.\n")
                    elif line == "exit":
                        break
                    else:
                        self.say(f"{name}: {line}", name)
        except OSError:
            pass
        finally:
            with self.lock:
                if self.members.pop(name, None):
                    self.say(f"{name} sort")
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()


ChatServer(8000).run()
