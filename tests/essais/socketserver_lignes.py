"""socketserver, un thread par client ; la première ligne est le nom ; une liste sans verrou."""

import socketserver

outputs = []


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        name = self.rfile.readline().decode().strip()
        outputs.append(self.wfile)
        for line in self.rfile:
            text = line.decode().strip()
            if text == "/quit":
                break
            print(f"{name}: {text}")
            for output in outputs:
                if output is not self.wfile:
                    output.write(f"{name}: {text}\n".encode())
        outputs.remove(self.wfile)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("0.0.0.0", 9999), Handler) as server:
    server.serve_forever()
